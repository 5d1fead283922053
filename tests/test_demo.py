"""The demo: its numbers, its picture, and how it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conv3dt import demo, engine

ROOT = Path(__file__).parent.parent
BRAIN = "463,842 voxels"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return tmp_path / "demo.png"


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ISA the tests run on, the demo accepts it."""
    monkeypatch.setattr(demo, "why_not_compiled", lambda algorithm: None)


def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = [name for name in sys.modules if name.split(".")[0] == "matplotlib"]
    for name in ["matplotlib", *loaded]:
        monkeypatch.setitem(sys.modules, name, None)


def test_numbers_and_picture(allowed, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the demo extra)")
    assert demo.main(["--output", str(picture), "--threads", "2"]) == 0
    printed = capsys.readouterr().out
    for words in (engine.selected(), "threads", "GF/s", "MB/s", BRAIN, "agreement", "PASS"):
        assert words in printed
    header = picture.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n")
    width, height = np.frombuffer(header[16:], ">u4")
    assert width > 1000 and height > 500


def test_same_mask_on_one_thread() -> None:
    head = demo.load_head()
    y = demo.build_layer(head, num_threads=1)(head.features)
    assert (y[0, ..., 1] > 0.5).sum() == 463_842
    np.testing.assert_allclose(y.sum(axis=-1), 1, rtol=1e-6)


def test_goes_on_without_matplotlib(allowed, monkeypatch, picture: Path, capsys) -> None:
    without_matplotlib(monkeypatch)
    assert demo.main(["--output", str(picture)]) == 0
    assert "matplotlib is not installed" in capsys.readouterr().out
    assert not picture.exists()


def test_wrong_mask_fails(allowed, monkeypatch, picture: Path, capsys) -> None:
    without_matplotlib(monkeypatch)
    head = demo.load_head()
    mask = head.mask.copy()
    mask[:2, :4, :3] ^= True  # 24 of 2,097,152 voxels: just below the limit
    monkeypatch.setattr(demo, "load_head", lambda: replace(head, mask=mask))
    assert demo.main(["--output", str(picture)]) == 1
    printed = capsys.readouterr().out
    assert "FAIL" in printed and "PASS" not in printed


def test_missing_folder_fails(allowed, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (the demo extra)")
    assert demo.main(["--output", str(tmp_path / "missing" / "demo.png")]) == 1
    assert "could not be written" in capsys.readouterr().out


def test_bad_threads_are_a_usage_error(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        demo.main(["--threads", "0"])
    assert stop.value.code == 2
    assert "num_threads" in capsys.readouterr().err


def test_kernels_that_decline_fail(monkeypatch, picture: Path, capsys) -> None:
    monkeypatch.setattr(engine, "selected", lambda: "avx2")
    monkeypatch.setattr(demo, "algorithm_of", lambda head: "im2col")
    assert demo.main(["--output", str(picture)]) == 1
    printed = capsys.readouterr()
    assert "no compiled kernels" in printed.err
    assert printed.out == "" and not picture.exists()


def test_numpy_that_nobody_asked_for_fails(monkeypatch, picture: Path, capsys) -> None:
    monkeypatch.delenv("CONV3DT_ISA", raising=False)
    monkeypatch.setattr(engine, "selected", lambda: "numpy")
    monkeypatch.setattr(engine, "built", lambda: ("avx512",))
    assert demo.main(["--output", str(picture)]) == 1
    assert "no compiled kernels" in capsys.readouterr().err


def run_demo(folder: Path, picture: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CONV3DT_")}
    return subprocess.run(
        [sys.executable, "-m", "conv3dt", "demo", "--output", str(picture)],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(folder), **variables},
        capture_output=True,
        text=True,
    )


def test_checkout_without_kernels_fails(tmp_path: Path, picture: Path) -> None:
    bare = shutil.ignore_patterns("*.so", "*.pyd", "PURE", "__pycache__")
    shutil.copytree(ROOT / "conv3dt", tmp_path / "conv3dt", ignore=bare)
    done = run_demo(tmp_path, picture)
    assert done.returncode != 0
    assert "no compiled kernels" in done.stderr and not picture.exists()
    done = run_demo(tmp_path, picture, CONV3DT_ALLOW_PURE="1")
    assert done.returncode == 0, done.stderr
    assert BRAIN in done.stdout


def test_numpy_when_asked_for(picture: Path) -> None:
    done = run_demo(ROOT, picture, CONV3DT_ISA="numpy")
    assert done.returncode == 0, done.stderr
    assert BRAIN in done.stdout and "numpy" in done.stdout
