"""Memory between two pages that must not be touched: a wrong access ends the process.

A vector load that reads four bytes too far dies here (pytest's faulthandler says where).
"""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

PAGE = mmap.PAGESIZE
_PROT_NONE = 0


class Guarded:
    """At least ``nbytes`` of memory, a forbidden page before and one after it."""

    def __init__(self, nbytes: int) -> None:
        self.pages = max(-(-nbytes // PAGE), 1) * PAGE
        self.memory = mmap.mmap(-1, self.pages + 2 * PAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        libc = ctypes.CDLL(None, use_errno=True)
        for page in (address, address + PAGE + self.pages):
            if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), _PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect failed")

    def bytes(self, nbytes: int, at_end: bool) -> np.ndarray:
        """Bytes that end (start) with the last (first) one that may be touched."""
        return np.frombuffer(
            self.memory, np.uint8, nbytes, PAGE + (self.pages - nbytes if at_end else 0)
        )

    def copy(self, array: np.ndarray, at_end: bool) -> np.ndarray:
        """``array``, C-contiguous, at that end of the memory."""
        held = self.bytes(array.nbytes, at_end).view(array.dtype).reshape(array.shape)
        held[...] = array
        return held


def guarded(array: np.ndarray, at_end: bool) -> np.ndarray:
    """A copy of ``array`` in memory of its own."""
    return Guarded(array.nbytes).copy(array, at_end)
