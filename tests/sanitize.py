"""Run tests on kernels built with ASan and UBSan: ``python tests/sanitize.py [pytest args]``.

Builds the best instruction set of this CPU and the generic one from a copy of the checkout, and
runs the tests of both at once.
Needs GCC, Cython, setuptools 77, what the tests need, and the checkout's own kernels built.
Leaks are not looked for: Python has its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# -fno-wrapv: Python's own flags define signed overflow, which would hide it.
CFLAGS = (
    "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined "
    "-fno-sanitize-recover=undefined -fno-wrapv"
)
# What reaches the kernels. Not the threads' tests: limits of memory and ASan exclude each other.
# Not what must end by a signal: ASan catches it.
TESTS = [
    f"tests/test_{name}.py"
    for name in ("kernels", "guard_pages", "fuzz", "functional", "same_bits", "softmax")
]


def ask(*command: str) -> str:
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return result.stdout.strip()


def main(arguments: list[str]) -> int:
    best = ask(sys.executable, "-c", "from conv3dt import engine; print(engine.can()[0])")
    isas = dict.fromkeys((best, "generic"))
    libraries = [ask("gcc", f"-print-file-name={x}") for x in ("libasan.so", "libstdc++.so.6")]
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder, "conv3dt")
        ignored = shutil.ignore_patterns(".git", "build", "*.so", "__pycache__")
        shutil.copytree(ROOT, checkout, ignore=ignored)
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=checkout,
            env=os.environ | {"CONV3DT_CFLAGS": CFLAGS, "CONV3DT_BUILD_ISA": ",".join(isas)},
            check=True,
        )
        environment = {
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONMALLOC": "malloc",
            "CONV3DT_EXPECT_ISA": ",".join(isas),
        }
        # capture=sys: what a sanitizer says as it ends the process must reach the terminal.
        command = [sys.executable, "-m", "pytest", "-q", "--capture=sys", "--durations=5"]
        runs = [
            subprocess.Popen(
                [*command, "-k", f"{chosen} and not guard_guards", *(arguments or TESTS)],
                cwd=checkout,
                env=os.environ | environment,
            )
            for chosen in ("generic", "not generic and not numpy")
        ]
        return max(run.wait() != 0 for run in runs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
