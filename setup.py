"""Build: one kernel source, compiled once per instruction set and dtype.

Environment variables:

CONV3DT_ALLOW_PURE=1   install without compiled kernels when no C compiler works
CONV3DT_BUILD_ISA      names from ``ISAS``, separated by commas: build only these
CONV3DT_CFLAGS         appended to every compile and link command (the sanitizers use it)
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# isort: split
# The shim for distutils exists only once setuptools is imported.
from distutils.ccompiler import new_compiler
from distutils.errors import CompileError, LinkError
from distutils.sysconfig import customize_compiler, get_python_inc

SOURCES = Path("src_pyx")
GENERATED = Path("build/pyx")
PURE_MARKER = Path("conv3dt/_compiled/PURE")
DTYPES = ("float32", "float64")


class Isa(NamedTuple):
    """An instruction set: where it exists and how to ask for it. simd.h has the rest."""

    macro: str  # what the compiler defines on such a machine; "" is any machine
    flags: tuple[str, ...]  # tried in this order; the first that the compiler knows is used


# The second choices are for compilers older than the names of the x86-64 levels
# (GCC 11, clang 12); conv3dt/_compiled/runtime asks the CPU for the same features.
_V2 = "-msse4.2 -mpopcnt -mcx16 -msahf"
_V3 = f"{_V2} -mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt -mmovbe"
_V4 = f"{_V3} -mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl"
ISAS = {
    "generic": Isa("", ("",)),
    "baseline": Isa("__x86_64__", ("-march=x86-64-v2", _V2)),
    "avx2": Isa("__x86_64__", ("-march=x86-64-v3", _V3)),
    "avx512": Isa("__x86_64__", ("-march=x86-64-v4", _V4)),
    "neon": Isa("__aarch64__", ("",)),
}

# Never -march=native: wheels travel. Never -ffast-math: when linking it adds start-up
# code that switches denormals off for the whole process.
OPTIMIZE = ("-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
OPENMP = (  # (compile, link): GCC and clang; Apple's clang with libomp
    (["-fopenmp"], ["-fopenmp"]),
    (["-Xpreprocessor", "-fopenmp"], ["-lomp"]),
)

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
}

NO_COMPILER = """
conv3dt needs a C compiler, the headers of Python and POSIX threads. This did not work:
    {tried}
Install them (Debian, Ubuntu: apt-get install gcc python3-dev), or set CONV3DT_ALLOW_PURE=1
to install without compiled kernels: everything then runs in NumPy, correct but slower.
"""


class Toolchain:
    """What the C compiler accepts, found by trying."""

    def __init__(self) -> None:
        self.compiler = new_compiler()
        customize_compiler(self.compiler)
        self.command = shlex.join(getattr(self.compiler, "compiler_so", ["cl"]))

    def compiles(self, code: str, flags: list[str], link: list[str] | None = None) -> bool:
        """Whether ``code`` compiles with ``flags`` and, given ``link``, links with those."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(code + "\n")
            include = [get_python_inc(), get_python_inc(plat_specific=True)]
            try:
                objects = self.compiler.compile(
                    [str(source)], output_dir="/", include_dirs=include, extra_postargs=flags
                )  # objects go to output_dir plus the source's path: beside it
                if link is not None:
                    self.compiler.link_executable(
                        objects, str(Path(folder, "probe")), extra_postargs=link
                    )
            except (CompileError, LinkError, OSError):
                return False
        return True

    def works(self) -> bool:
        headers = ("Python.h", "pthread.h", "dlfcn.h")
        code = "".join(f"#include <{header}>\n" for header in headers)
        return self.compiles(code + "int main(void) { return 0; }", [], [])

    def optimize(self) -> list[str]:
        return [flag for flag in OPTIMIZE if self.compiles("int x;", ["-Werror", flag])]

    def openmp(self) -> tuple[list[str], list[str]] | None:
        code = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }"
        return next((pair for pair in OPENMP if self.compiles(code, *pair)), None)

    def isa(self, isa: Isa) -> list[str] | None:
        """Flags for an instruction set; None when this machine or compiler has no such."""
        code = f"#ifndef {isa.macro}\n#error\n#endif\nint x;" if isa.macro else "int x;"
        choices = (flags.split() for flags in isa.flags)
        return next((flags for flags in choices if self.compiles(code, flags)), None)


def wanted() -> list[str]:
    """Instruction sets to build where the compiler can: all, or CONV3DT_BUILD_ISA."""
    names = os.environ.get("CONV3DT_BUILD_ISA", "").replace(",", " ").split() or list(ISAS)
    for name in names:
        if name not in ISAS:
            sys.exit(f"CONV3DT_BUILD_ISA must name some of {', '.join(ISAS)}, got {name!r}")
    return names


def extensions() -> list[Extension]:
    """Every module that could be built; BuildExt drops what the compiler cannot do."""
    modules = ["runtime"] + [f"{isa}_{dtype}" for isa in wanted() for dtype in DTYPES]
    sources = {m: str(GENERATED / f"{m}.pyx") for m in modules}
    sources["runtime"] = str(SOURCES / "runtime.pyx")
    return [Extension(f"conv3dt._compiled.{m}", [sources[m]]) for m in modules]


class BuildExt(build_ext):
    """Probes the compiler, generates one .pyx per module, builds them in parallel."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self) -> None:
        super().run()
        if self.inplace and self.extensions:
            PURE_MARKER.unlink(missing_ok=True)

    def build_extensions(self) -> None:
        toolchain = Toolchain()
        if not toolchain.works():
            sys.exit(NO_COMPILER.format(tried=toolchain.command))
        self.configure(toolchain)
        self.cythonize()
        super().build_extensions()

    def configure(self, toolchain: Toolchain) -> None:
        """Give every extension its flags; drop those this compiler cannot build."""
        optimize, openmp = toolchain.optimize(), toolchain.openmp()
        flags = {name: toolchain.isa(ISAS[name]) for name in wanted()}
        print(f"conv3dt: compiler {toolchain.command}")
        print(f"conv3dt: flags    {' '.join(optimize)}")
        print(f"conv3dt: OpenMP   {' '.join(openmp[0]) if openmp else 'none: one thread'}")
        for name, isa_flags in flags.items():
            found = "not on this machine" if isa_flags is None else " ".join(isa_flags)
            print(f"conv3dt: {name:8} {found or 'no flags'}")

        openmp_compile, openmp_link = openmp or ([], [])
        extra = shlex.split(os.environ.get("CONV3DT_CFLAGS", ""))
        kept = []
        for ext in self.extensions:
            isa = ext.name.rpartition(".")[2].partition("_")[0]  # "runtime" has no entry
            isa_flags = flags.get(isa, [])
            if isa_flags is None:
                continue
            ext.extra_compile_args = [*optimize, *isa_flags, *openmp_compile, *extra]
            ext.extra_link_args = [*openmp_link, *extra]
            ext.define_macros = macros(ext.name)
            kept.append(ext)
        self.extensions[:] = kept

    def cythonize(self) -> None:
        import numpy as np
        from Cython.Build import cythonize

        depends = [str(p) for p in SOURCES.iterdir() if p.suffix in (".pxd", ".pxi", ".h")]
        for ext in self.extensions:
            ext.include_dirs = [str(SOURCES), np.get_include()]
            ext.depends = [*depends, "setup.py"]
            if not ext.name.endswith(".runtime"):
                write_if_changed(Path(ext.sources[0]), 'include "kernels.pyx"\n')
        translated = cythonize(
            self.extensions,
            nthreads=os.cpu_count() or 1,
            include_path=[str(SOURCES)],
            build_dir=str(GENERATED / "c"),
            compiler_directives=DIRECTIVES,
            force=bool(self.force),
        )
        c_files = {ext.name: ext.sources for ext in translated}
        for ext in self.extensions:
            ext.sources = c_files[ext.name]


def macros(module: str) -> list[tuple[str, str | None]]:
    """Definitions that make one kernel source into ``module``; read by simd.h."""
    isa, _, dtype = module.rpartition(".")[2].partition("_")
    defined: list[tuple[str, str | None]] = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")]
    if isa == "generic":
        defined.append(("CONV3DT_GENERIC", None))
    if dtype == "float64":
        defined.append(("CONV3DT_FLOAT64", None))
    return defined


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class BuildPy(build_py):
    """Marks an install that was allowed to be without kernels, so that the engine knows."""

    def run(self) -> None:
        super().run()
        if not self.distribution.ext_modules:
            root = Path() if self.editable_mode else Path(self.build_lib)
            write_if_changed(root / PURE_MARKER, "Installed with CONV3DT_ALLOW_PURE=1.\n")


def main() -> None:
    pure = os.environ.get("CONV3DT_ALLOW_PURE") == "1" and not Toolchain().works()
    if pure:
        print("conv3dt: no working C compiler; CONV3DT_ALLOW_PURE=1: installing without kernels")
    setup(
        ext_modules=[] if pure else extensions(),
        cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
    )


if __name__ == "__main__":
    main()
