"""Fill the two venvs of the race and compile the probes of the machine's floor.

    python benchmarks/setup_venvs.py [--into FOLDER]

The pins are the extras ``bench`` and ``bench-tf`` of pyproject.toml. TensorFlow has a venv
of its own, so that its dependencies cannot hold the other peers back.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

import tomllib

HERE = Path(__file__).resolve().parent
EXTRAS = {"bench": "bench", "tf": "bench-tf"}
# These modules are built on the machine that they measure and never leave it.
PROBE_FLAGS = "-O3 -march=native -mprefer-vector-width=512 -ffp-contract=fast -fopenmp"


def fill(folder: Path, requirements: list[str]) -> Path:
    """Create one venv; returns its interpreter."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python


def build_probes(python: Path) -> None:
    """Compile probes.pyx in place, for the interpreter of the venv ``bench``."""
    script = (
        "from setuptools import Extension, setup; from Cython.Build import cythonize; "
        f"setup(name='probes', script_args=['-q', 'build_ext', '--inplace'], "
        f"ext_modules=cythonize([Extension('probes', ['probes.pyx'], "
        f"extra_compile_args={PROBE_FLAGS.split()}, extra_link_args=['-fopenmp'])], "
        "build_dir='build', quiet=True))"
    )
    subprocess.run([python, "-c", script], check=True, cwd=HERE, env=dict(os.environ))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, default=HERE / ".venvs")
    into: Path = parser.parse_args().into
    with (HERE.parent / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    for name, extra in EXTRAS.items():
        fill(into / name, [*project["dependencies"], *extras[extra]])
    bench = fill(into / "bench", ["cython", "setuptools"])
    build_probes(bench)
    print(f"ready: {sys.executable} {HERE / 'race.py'} --quick")


if __name__ == "__main__":
    main()
