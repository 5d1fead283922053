"""Random problems under valgrind's memcheck: ``python tests/valgrind.py [--isa avx2]``.

The problems of fuzz.py, with each operand in a block of the heap: memcheck sees every byte that
is read or written outside of it, and every one that decides something and was never written.
At last an input is read beyond its end on purpose, which must be seen. Needs valgrind, which
knows no AVX-512.

Errors count whose stacks (where it happened; where the memory was allocated or freed) have a
frame of the kernels. Those of the interpreter alone, of which there are dozens, are not ours.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import fuzz
import numpy as np
from cases import axis

from conv3dt import engine, plan
from conv3dt.problem import Problem

FOLDER = Path(__file__).parent
OPTIONS = (
    "--tool=memcheck", "--show-leak-kinds=none", "--track-origins=yes", "--num-callers=40",
    "--error-limit=no", "--fair-sched=yes", "--xml=yes",
)  # fmt: skip
SHORT = 16_352  # bytes of the input that is read beyond its end: a voxel less than it should be

# ---- what valgrind runs -----------------------------------------------------------


class Heap:
    """In the place of guarded memory."""

    def __init__(self, nbytes: int) -> None:
        pass

    def bytes(self, nbytes: int, at_end: bool) -> np.ndarray:
        return np.empty(nbytes, np.uint8)

    def copy(self, array: np.ndarray, at_end: bool) -> np.ndarray:
        return array.copy()


def check(isa: str, first: int, problems: int) -> None:
    fuzz.Guarded = Heap  # type: ignore[misc, assignment]
    fuzz.memory = lambda operand, nbytes: Heap(nbytes)  # type: ignore[assignment]
    engine.select(isa)
    report = fuzz.Report()
    for number in range(first, first + problems):
        fuzz.check(fuzz.numbered(number), report)
    read_beyond_the_end()
    print(report.text())


def read_beyond_the_end() -> None:
    problem = Problem(8, 8, 1, (axis(8, 4, 2),) * 3, channels_last=True)
    x = np.zeros(SHORT // 4, np.float32)
    shape, strides = problem.x_shape(1), np.empty(problem.x_shape(1), np.float32).strides
    x = np.lib.stride_tricks.as_strided(x, shape, strides)
    weights = plan.Weights(np.ones(problem.kernel_shape, np.float32), None)
    plan.plan_for(problem, weights, "tiles").run(x, np.empty(problem.y_shape(1), np.float32))


# ---- the command ------------------------------------------------------------------


def errors_of(command: list[str], isa: str) -> tuple[int, list[ElementTree.Element]]:
    """The exit code, and whatever memcheck has to say."""
    environment = {
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), str(FOLDER)]),
        "CONV3DT_ISA": isa,
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",
        "OPENBLAS_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log.xml")
        valgrind = ["valgrind", *OPTIONS, f"--xml-file={log}"]
        code = subprocess.run([*valgrind, *command], env=os.environ | environment).returncode
        return code, list(ElementTree.parse(log).getroot().iter("error"))


def ours(error: ElementTree.Element) -> bool:
    return any("conv3dt/_compiled" in (frame.text or "") for frame in error.iter("obj"))


def text(error: ElementTree.Element) -> str:
    """What happened, and the functions that did it."""
    parts = [part.text or "" for part in error.iter() if part.tag in ("what", "auxwhat", "text")]
    return "; ".join(parts) + ": " + " < ".join(name.text or "" for name in error.iter("fn"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", default=engine.selected())
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first problem")
    its = parser.parse_args()
    call = f"import valgrind; valgrind.check({its.isa!r}, {its.first}, {its.problems})"
    code, errors = errors_of([sys.executable, "-c", call], its.isa)
    found = [text(error) for error in errors if ours(error)]
    intended = [one for one in found if f"after a block of size {SHORT:,} " in one]
    faults = [one for one in found if one not in intended]
    for fault in faults:
        print(fault)
    print(
        f"{its.isa}: {its.problems} problems, {len(faults)} errors; the read beyond an end was "
        f"{'seen' if intended else 'NOT seen'}; {len(errors) - len(found)} errors elsewhere"
    )
    return 0 if code == 0 and intended and not faults else 1


if __name__ == "__main__":
    sys.exit(main())
