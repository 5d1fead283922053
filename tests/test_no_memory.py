"""Memory runs out at any array: MemoryError each time, nothing leaks, the next call is right.

Every array of a call (output, packed weights, scratch memory, copies, columns) comes from
NumPy's allocator, which is replaced here by one that refuses the first, the second, the third
... of them; large outputs come from mmap, which is refused in the same way. Compiled modules
allocate nothing else, see the first test. Small objects of Python, and what NumPy needs within
its loops, are not refused: both have SystemErrors and crashes of their own then.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import COMPILED, ISAS

from conv3dt import _compiled, output_pool
from conv3dt.functional import conv3d_transpose
from conv3dt.layer import Conv3DTranspose

Call = Callable[[], np.ndarray]


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm, of binutils")
def test_compiled_modules_allocate_through_numpy_alone() -> None:
    modules = [path for path in Path(_compiled.__path__[0]).iterdir() if path.suffix == ".so"]
    assert modules or not COMPILED
    for module in modules:
        command = ["nm", "-D", "--undefined-only", str(module)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        wanted = {line.split()[-1].partition("@")[0] for line in lines.splitlines()}
        assert "PyImport_GetModuleDict" in wanted
        assert not wanted & {"malloc", "calloc", "realloc", "posix_memalign", "mmap"}, module.name


# ---- the allocator ----------------------------------------------------------------


class Memory:
    """The memory of all arrays that this thread makes, and of large outputs."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        capsule = ctypes.pythonapi.PyCapsule_New
        capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        capsule.restype = ctypes.py_object
        address = ctypes.addressof(ctypes.c_char.in_dll(self.library, "refusing_handler"))
        self.handler = capsule(address, b"mem_handler", None)

    def refuse(self, number: int) -> bool:
        """Refuse that request from now on, 0: none. Whether the former number was reached."""
        return bool(self.library.refusing_arm(number) <= 0)

    def live(self) -> int:
        """Bytes of arrays that exist."""
        gc.collect()
        return int(self.library.refusing_live())

    def mmap(self, *arguments: Any, **options: Any) -> mmap.mmap:
        if self.library.refusing_now():
            raise OSError(12, "refused")
        return mmap.mmap(*arguments, **options)


class RefusingMmap:
    """The module mmap, for the output pool."""

    def __init__(self, memory: Memory) -> None:
        self.mmap = memory.mmap

    def __getattr__(self, name: str) -> Any:
        return getattr(mmap, name)


def set_handler(handler: object) -> object:
    """PyDataMem_SetHandler, number 304 of NumPy's C functions; returns the former one."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.argtypes, pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    table = pointer(np._core.multiarray._ARRAY_API, None)
    function = ctypes.cast(table, ctypes.POINTER(ctypes.c_void_p))[304]
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(function)(handler)


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Memory:
    library = tmp_path_factory.mktemp("refusing") / "refusing.so"
    source = Path(__file__).with_name("refusing.c")
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return Memory(library)


@pytest.fixture
def memory(refusing: Memory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    monkeypatch.setattr(output_pool, "mmap", RefusingMmap(refusing))
    former = set_handler(refusing.handler)
    yield refusing
    refusing.refuse(0)
    set_handler(former)


# ---- the calls --------------------------------------------------------------------


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def call_of(name: str) -> Call:
    """A call that has the same result whenever it is made."""
    x, kernel, bias = normal(2, 3, 4, 5, 6), normal(3, 3, 3, 7, 6), normal(7)
    arrays: tuple[Any, ...] = (x, kernel, bias)
    options: dict[str, Any] = {}
    if name in ("direct", "winograd", "im2col"):
        options = {"algorithm": name}
    elif name == "few filters":
        arrays, options = (normal(1, 8, 8, 32, 16), normal(2, 2, 2, 1, 16)), {"strides": 2}
    elif name == "depthwise":
        arrays, options = (x, normal(3, 3, 3, 1, 6)), {"groups": 6, "activation": "tanh"}
    elif name == "two threads":
        options = {"num_threads": 2}
    elif name == "half type":
        arrays = (x.astype(np.float16), kernel, bias)
        options = {"padding": "same", "activation": "softmax"}
    elif name == "strided":
        arrays = (x[:, ::-1, :, ::2], kernel.transpose(2, 1, 0, 3, 4), bias)
    elif name == "lists":
        arrays = (x[:1, :1, :1].tolist(), kernel, bias)
    elif name == "strided out":
        options = {"out": np.empty((2, 5, 6, 7, 9), np.float32)[..., 1:8]}
    elif name == "layer":
        layer = Conv3DTranspose(7, 3, activation="gelu", input_shape=(3, 4, 5, 6))
        return lambda: layer(x)
    elif name == "new layer":
        ones = {"kernel_initializer": "ones", "dtype": "float64"}
        return lambda: Conv3DTranspose(7, 3, name="its", **ones)(x)
    elif name == "large":
        arrays, options = (normal(1, 16, 16, 16, 4), normal(2, 2, 2, 33, 4)), {"strides": 2}

        def call_without_idle_memory() -> np.ndarray:
            output_pool._pool.idle.clear()
            return conv3d_transpose(*arrays, **options)

        return call_without_idle_memory
    return lambda: conv3d_transpose(*arrays, **options)


CALLS = (
    "direct", "winograd", "im2col", "few filters", "depthwise", "two threads", "half type",
    "strided", "lists", "strided out", "layer", "new layer", "large",
)  # fmt: skip


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("isa", {ISAS[0]: None, "numpy": None}, indirect=True)
def test_every_array_refused_in_turn(
    name: str, isa: str, memory: Memory, always_parallel: None
) -> None:
    call = call_of(name)
    want = call().copy()
    assert (call() == want).all()
    before = memory.live()
    raised = made_good = 0
    for number in count(1):
        memory.refuse(number)
        try:
            result = call()
        except MemoryError:
            assert memory.refuse(0)
            raised += 1
        else:
            reached = memory.refuse(0)
            assert (result == want).all()
            if not reached:
                break
            made_good += 1
        assert (call() == want).all()
    assert raised == number - 1 - made_good > 0
    assert made_good <= 1  # the output pool asks again for an output
    del result
    assert memory.live() == before
