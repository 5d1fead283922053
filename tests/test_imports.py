"""Imports follow the way of the data and never go back; only NumPy is needed at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import conv3dt
from conv3dt import engine

PACKAGE = Path(__file__).parent.parent / "conv3dt"

# Module: the modules of the package that it may import. Whoever is not named here stands
# above all these (formats, models, the command line) and may import any of them.
MAY_IMPORT = {
    "problem": set(),
    "cpus": set(),
    "identifiers": set(),
    "optional": set(),
    "names": {"identifiers"},
    "memory": {"cpus"},
    "output_pool": {"memory"},
    "arguments": {"problem"},
    "dtypes": {"arguments"},
    "activations": {"identifiers"},
    "initializers": {"identifiers"},
    "regularizers": {"identifiers"},
    "constraints": {"identifiers"},
    "col2im": {"problem"},
    "cost": {"problem"},
    "engine": {"cpus", "output_pool", "_compiled"},
    "plan": {"problem", "cost", "engine", "col2im", "output_pool"},
    "pieces": {"activations", "dtypes", "plan", "problem"},
    "program": {"output_pool"},
    "chained": {"engine", "output_pool", "pieces", "problem", "program"},
    "blocks": {"arguments", "chained", "output_pool", "pieces", "plan"},
    "functional": {"activations", "arguments", "problem", "plan"},
    "layer": {
        "activations", "arguments", "blocks", "chained", "constraints", "dtypes", "engine",
        "initializers", "names", "pieces", "plan", "problem", "regularizers",
        "formats",  # in the methods that read and write files, when they are called
    },
    "members": {"activations", "arguments", "names", "output_pool"},
    "batchnorm": {"activations", "arguments", "dtypes", "initializers", "members"},
    "dense": {
        "activations", "arguments", "dtypes", "engine", "initializers", "layer", "members",
    },
    "folding": {"batchnorm", "dense", "dtypes", "layer", "members"},
    "registry": {"batchnorm", "dense", "layer", "members"},
    "stages": {
        "batchnorm", "chained", "dense", "dtypes", "layer", "members", "pieces", "program",
    },
}  # fmt: skip
BASE = set(MAY_IMPORT)
INSTALLED = Path(conv3dt.__file__).parent  # a wheel's, when the tests are elsewhere
COMPILED = sorted(path.name.partition(".")[0] for path in INSTALLED.glob("_compiled/*.so"))
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def _imports(path: Path, statements: Iterator[ast.AST]) -> Iterator[str]:
    """Names of imported modules; those of the package start with a dot, relative to its root."""
    parents = len(path.parent.parts)
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom):
            prefix = ".".join(path.parent.parts[: parents + 1 - node.level])
            base = ".".join(part for part in (prefix, node.module) if part)
            if base:
                yield f".{base}"
            else:
                yield from (f".{alias.name}" for alias in node.names)


def _tree(path: Path) -> ast.Module:
    return ast.parse((PACKAGE / path).read_text(encoding="utf-8"))


def _own(path: Path) -> set[str]:
    """First names of the modules of the package that ``path`` imports anywhere."""
    found = set()
    for name in _imports(path, ast.walk(_tree(path))):
        if name.startswith("."):
            found.add(name[1:].partition(".")[0])
        elif name.partition(".")[0] == "conv3dt":
            found.add(name.partition(".")[2].partition(".")[0] or "__init__")
    return found


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_follow_the_arrow(path: Path) -> None:
    name = path.with_suffix("").as_posix()
    if name in MAY_IMPORT:
        assert _own(path) <= MAY_IMPORT[name]


def test_the_arrow_has_no_circle() -> None:
    """Removing what imports nothing that is left must leave nothing."""
    left = dict(MAY_IMPORT)
    while ready := [name for name, imported in left.items() if not imported & set(left)]:
        for name in ready:
            del left[name]
    assert not left


def test_every_module_of_the_arrow_exists() -> None:
    assert {f"{name}.py" for name in BASE} <= {path.as_posix() for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_importing_needs_only_numpy_and_threadpoolctl(path: Path) -> None:
    """Optional packages are imported where they are used, inside functions."""
    if path.parts[0] in ("__main__.py", "demo.py"):
        return  # not imported by the package itself
    allowed = {*sys.stdlib_module_names, "numpy", "threadpoolctl", "conv3dt"}
    top = [
        name.partition(".")[0]
        for name in _imports(path, iter(_tree(path).body))
        if not name.startswith(".")
    ]
    assert set(top) <= allowed


@pytest.mark.parametrize("name", COMPILED)
def test_no_module_ends_the_process(name: str) -> None:
    """Documentation tools import all they find, also what is compiled for another CPU."""
    command = [sys.executable, "-c", f"import conv3dt._compiled.{name}"]
    result = subprocess.run(command, capture_output=True, text=True)
    isa = name.partition("_")[0]
    if name == "runtime" or isa in engine.can():
        assert (result.returncode, result.stderr) == (0, "")
    else:
        assert result.returncode == 1
        assert f"{name}: this CPU lacks its instruction set" in result.stderr
