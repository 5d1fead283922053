# What every kernel module <isa>_<dtype> offers; see src_pyx/kernels.pyx.
from collections.abc import Sequence
from typing import Any

import numpy as np

_Array = np.ndarray[Any, np.dtype[Any]]
_Packed = tuple[_Array, tuple[int, ...]]  # weights, where each phase's panel starts
# size, out, stride, and per phase (first, count, ((tap, offset), ...))
_Axis = tuple[int, int, int, tuple[tuple[int, int, tuple[tuple[int, int], ...]], ...]]
_PhaseTaps = Sequence[Sequence[Sequence[int]]]  # per axis, per phase

VECTOR: int
MR: int
NV: int
NR: int
FUSED: frozenset[int]
DTYPE: np.dtype[Any]

class Plan:
    @property
    def channels_last(self) -> bool: ...
    @property
    def scratch(self) -> int: ...
    def run(
        self,
        x: _Array,
        y: _Array,
        code: int,
        params: tuple[float, float, float, float],
        threads: int,
    ) -> int: ...
    def softmax(self, y: _Array, threads: int) -> None: ...

class Tiles(Plan):
    def __init__(
        self,
        axes: Sequence[_Axis],
        channels: int,
        filters: int,
        groups: int,
        channels_last: bool,
        fused: bool,
        minimal: bool,
        sparse: bool,
        packed: _Packed,
        bias: _Array,
        multiplications: float,
    ) -> None: ...

class Taps(Plan):
    def __init__(
        self,
        axes: Sequence[_Axis],
        channels: int,
        filters: int,
        channels_last: bool,
        kernel: _Array,
        bias: _Array,
        multiplications: float,
    ) -> None: ...

class Lanes(Plan):
    def __init__(
        self,
        axes: Sequence[_Axis],
        channels: int,
        filters: int,
        channels_last: bool,
        packed: _Array,
        bias: _Array,
        multiplications: float,
    ) -> None: ...

class Depthwise(Plan):
    def __init__(
        self,
        axes: Sequence[_Axis],
        channels: int,
        filters: int,
        channels_last: bool,
        packed: _Array,
        bias: _Array,
        multiplications: float,
    ) -> None: ...

def pack_tiles(kernel: _Array, axes: _PhaseTaps, groups: int, fused: bool) -> _Packed: ...
def pack_winograd(kernel: _Array, axes: _PhaseTaps) -> _Packed: ...
def pack_lanes(kernel: _Array) -> _Array: ...
def filters_of_a_tile(filters: int) -> int: ...
def pack_depthwise(kernel: _Array) -> _Array: ...
def wrapped(row: _Array) -> _Array: ...
