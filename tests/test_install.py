"""Building and installing: what the sdist and the wheels hold, and what happens without CC.

Builds from a copy of the checkout, with the Cython, NumPy and setuptools that are installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src_pyx"

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not SOURCES.exists(), reason="needs a checkout"),
]


def run(*command: str | Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("CONV3DT_")}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


def build(kind: str, folder: Path, into: Path, **environment: str) -> Path:
    """Build an ``sdist`` or ``wheel`` as pip would, without a new environment for it."""
    pytest.importorskip("Cython")
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(into)!r})"
    result = run("-c", code, folder=folder, **environment)
    assert result.returncode == 0, result.stdout
    (made,) = into.iterdir()
    return made


def copy_of_checkout(folder: Path) -> Path:
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=ignored, ignore_dangling_symlinks=True)
    (folder / "conv3dt/_compiled/PURE").unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="module")
def unpacked_sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("sdist")
    checkout = copy_of_checkout(tmp / "checkout")
    (checkout / "conv3dt/_compiled/leftover.so").touch()
    (tmp / "dist").mkdir()
    with tarfile.open(build("sdist", checkout, tmp / "dist")) as archive:
        archive.extractall(tmp / "unpacked", filter="data")
    (folder,) = (tmp / "unpacked").iterdir()
    return folder


def test_the_sdist_is_complete(unpacked_sdist: Path) -> None:
    parts = ("conv3dt", "src_pyx", "tests", "docs", "examples", "benchmarks")
    wanted = {
        path.relative_to(ROOT)
        for part in parts
        for path in (ROOT / part).rglob("*")
        if path.suffix in (".py", ".pyi", ".pyx", ".pxd", ".h", ".md", ".json", ".npz")
        if not {"build", "results", ".venvs", ".ruff_cache"} & set(path.parts)
    }
    wanted |= {Path(name) for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE")}
    there = {path.relative_to(unpacked_sdist) for path in unpacked_sdist.rglob("*")}
    assert wanted <= there
    compiled = {path for path in there if path.suffix in (".so", ".c", ".pyc")}
    assert compiled == {Path("tests/refusing.c")}  # which is not made from anything


def test_a_wheel_from_the_sdist(unpacked_sdist: Path, tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    wheel = build("wheel", unpacked_sdist, tmp_path / "dist")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        names = archive.namelist()
    package = [name for name in names if name.startswith("conv3dt/")]
    assert {Path(name).suffix for name in package} <= {".py", ".pyi", ".so", ".typed", ".npz", ""}
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conv3dt").rglob("*.py")}
    wanted |= {f"conv3dt/data/{path.name}" for path in (ROOT / "conv3dt/data").iterdir()}
    assert wanted | {"conv3dt/py.typed", "conv3dt/_compiled/runtime.pyi"} <= set(package)
    assert "conv3dt/_compiled/PURE" not in package

    told = run("-m", "conv3dt", "info", folder=site)
    assert told.returncode == 0 and str(site) in told.stdout, told.stdout
    assert "NumPy (no compiled kernels)" not in told.stdout


def test_no_compiler_fails_and_says_what_to_do(unpacked_sdist: Path, tmp_path: Path) -> None:
    result = run(
        "-c",
        f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})",
        folder=unpacked_sdist,
        CC="false",
    )
    assert result.returncode != 0
    assert "set CONV3DT_ALLOW_PURE=1" in result.stdout
    assert "Traceback" not in result.stdout.partition("conv3dt needs a C compiler")[2]
    assert not list(tmp_path.iterdir())


def test_a_pure_wheel(unpacked_sdist: Path, tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    wheel = build("wheel", unpacked_sdist, tmp_path / "dist", CC="false", CONV3DT_ALLOW_PURE="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    told = run("-m", "conv3dt", "info", folder=tmp_path / "site")
    assert told.returncode == 0, told.stdout
    assert "selected  NumPy (no compiled kernels)" in told.stdout


def test_a_pure_editable_install_ends_with_the_next_build(tmp_path: Path) -> None:
    pytest.importorskip("Cython")
    checkout = copy_of_checkout(tmp_path / "checkout")
    marker = checkout / "conv3dt/_compiled/PURE"
    code = f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})"
    result = run("-c", code, folder=checkout, CC="false", CONV3DT_ALLOW_PURE="1")
    assert result.returncode == 0 and marker.exists(), result.stdout
    result = run("-c", code, folder=checkout, CONV3DT_BUILD_ISA="generic")
    assert result.returncode == 0 and not marker.exists(), result.stdout
    told = run("-m", "conv3dt", "info", folder=checkout)
    assert "selected  generic" in told.stdout
