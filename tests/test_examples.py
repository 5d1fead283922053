"""The examples run as printed, and their results are what the formula says."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import oracle
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str) -> dict:
    return runpy.run_path(str(EXAMPLES / name))


def test_keras_user() -> None:
    seen = run("keras_user.py")
    expected = oracle.conv3d_transpose(
        seen["x"], *seen["weights"], strides=(2, 2, 2), crops=(0, 0, 0), out_sizes=(16, 16, 16)
    )
    np.testing.assert_allclose(seen["y"], np.maximum(expected, 0), atol=1e-3)


def test_torch_user() -> None:
    seen = run("torch_user.py")
    expected = oracle.conv3d_transpose(
        seen["x"],
        seen["state"]["weight"].transpose(2, 3, 4, 1, 0),
        seen["state"]["bias"],
        strides=(2, 2, 2),
        crops=(1, 1, 1),
        out_sizes=(16, 16, 16),
        channels_last=False,
    )
    np.testing.assert_allclose(seen["y"], expected, atol=1e-3)


def test_torch_user_against_torch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (the bench extra)")
    seen = run("torch_user.py")
    arrays = seen["x"], seen["state"]["weight"], seen["state"]["bias"]
    x, weight, bias = map(torch.from_numpy, arrays)
    expected = torch.nn.functional.conv_transpose3d(
        x, weight, bias, stride=2, padding=1, output_padding=1
    )
    np.testing.assert_allclose(seen["y"], expected.numpy(), atol=1e-3)


def test_numpy_user() -> None:
    seen = run("numpy_user.py")
    expected = seen["volume"]
    for axis in range(3):
        expected = expected.repeat(2, axis)
    np.testing.assert_array_equal(seen["doubled"], expected)


def test_every_example_is_tested() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"keras_user", "torch_user", "numpy_user"}
