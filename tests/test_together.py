"""Imported together with other users of OpenMP and of threads, in every order.

Runs with whatever of OTHERS the interpreter has. All of them in one environment, 120 orders:

    pip install torch scikit-learn onnxruntime tensorflow-cpu
    python -m pytest -m heavy tests/test_together.py
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
OTHERS = ("torch", "sklearn", "onnxruntime", "tensorflow")
ORDERS = list(permutations(["conv3dt", *filter(importlib.util.find_spec, OTHERS)]))


def work(name: str) -> None:
    """Something that the library does on threads."""
    module = importlib.import_module(name)
    x = np.ones((512, 512), np.float32)
    if name == "torch":
        module.set_num_threads(2)
        assert float((module.from_numpy(x) @ module.from_numpy(x))[0, 0]) == 512
    elif name == "sklearn":
        cluster = importlib.import_module("sklearn.cluster")
        assert len(cluster.KMeans(2, n_init=1, random_state=0).fit(np.eye(600)).labels_) == 600
    elif name == "tensorflow":
        assert float(module.linalg.matmul(x, x)[0, 0]) == 512
    elif name == "onnxruntime":
        assert module.OrtValue.ortvalue_from_numpy(x).numpy()[0, 0] == 1


def scenario(order: list[str]) -> None:
    """Import all, let all work, then conv3dt once more, in a child too."""
    for name in order:
        importlib.import_module(name)
    threads = importlib.import_module("test_threads")
    alone, _ = threads.call(1)
    want = alone, threads.full_team(3)
    for _ in range(2):
        for name in order:
            if name == "conv3dt":
                assert threads.call(3) == want
            else:
                work(name)
    assert threads.call(3) == want
    threads.in_child(lambda: threads.call(3) == want or sys.exit(1))
    assert threads.call(3) == want
    print(alone.hex())


def run(order: tuple[str, ...]) -> str:
    """A digest of the bits that conv3dt computed."""
    result = subprocess.run(
        [sys.executable, "-c", f"import test_together; test_together.scenario({list(order)})"],
        cwd=HERE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.split()[-1]


@pytest.fixture(scope="module")
def alone() -> str:
    return run(("conv3dt",))


@pytest.mark.heavy
@pytest.mark.skipif(len(ORDERS) == 1, reason=f"none of {', '.join(OTHERS)} is installed")
@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_any_order(order: tuple[str, ...], alone: str) -> None:
    assert run(order) == alone
