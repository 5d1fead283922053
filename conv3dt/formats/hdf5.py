"""HDF5 files whose content is not trusted, read without the HDF5 library.

Keras keeps weights in HDF5, and uses little of it: groups, arrays stored in one piece, strings as
attributes, all in the oldest layout. The format can do far more: link to other files, load
plug-ins for its filters, declare what it does not store. The library does all that, and one wrong
byte in a file of 20 kB makes it (1.14.6 and 2.0.0) fill 4 GiB for a short string, or list a group
for minutes. Here the little is read with a bound on every step; all else is a ValueError.

Layouts, for the rest see `hdf5_header`:

    file        signature, versions, sizes, ...; at 24 its base address, at 64 the root's
    group       addresses of a tree and of its heap of names
    tree        "TREE", type 0, level u8, number of children u16, 2 neighbours; (key, child) ...
    leaf        "SNOD", version, _, number of entries u16; entries of 40 bytes: offset of the
                name in the heap, address of the object, kind u32 (2: soft link), ...
    heap        "HEAP", version, 3 unused, size, _, address of the names; each ends with a 0
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import hdf5_header
from .files import regular
from .hdf5_header import Header, Source

Array = np.ndarray[Any, Any]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
LONGEST_NAME = 1 << 10
SOFT_LINK = 2
CONTIGUOUS = b"\x03\x01"  # version and class of the layout

# Formats of floats: first bit, bits, and first bit and bits of exponent and mantissa, bias.
_FLOATS = {
    struct.pack("<HHBBBBI", 0, 16, 10, 5, 0, 10, 15): "f2",
    struct.pack("<HHBBBBI", 0, 32, 23, 8, 0, 23, 127): "f4",
    struct.pack("<HHBBBBI", 0, 64, 52, 11, 0, 52, 1023): "f8",
}


def open_regular(path: Path) -> BinaryIO:
    """A file open to be read. ValueError for what is no regular file: a pipe may never open."""
    return open(regular(path), "rb")


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Make a ValueError that tells `path` of whatever the block raises.

    Damaged files raise what the damage leads to: no list of exceptions is complete.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ImportError) or str(path) in str(error):
            raise
        raise damaged(path, str(error) or type(error).__name__) from error


def damaged(path: Path, why: str) -> ValueError:
    """The error for a file that is not what it should be."""
    return ValueError(f"{path} cannot be read as a file of Keras: {why}")


def root(file: BinaryIO, path: Path) -> Group:
    """The outermost group of an open file; errors call it `path`."""
    with damage(path):
        source = Source(file, path)
        if source.read(0, 8) != SIGNATURE:
            raise ValueError("it is no HDF5 file")
        version, address_size, length_size = source.unpack("8xB4xBB", 0)
        if (version, address_size, length_size, *source.unpack("Q", 24)) != (0, 8, 8, 0):
            raise ValueError("its format is not the one that h5py, and so Keras, writes")
        return Group(source, source.unpack("Q", 64)[0], "/")


class Variable:
    """An array in an open file; until `read` only its head has been looked at.

    Attributes
    ----------
    name : str
    shape : tuple of int
    """

    def __init__(self, source: Source, header: Header, name: str) -> None:
        self._source, self._header, self.name = source, header, name
        space = header.first(hdf5_header.SPACE)
        if space is None:
            raise ValueError(f"{name} is neither a group nor an array as Keras writes them")
        self.shape = hdf5_header.sizes(space)

    def read(self) -> Array:
        """The numbers; bfloat16 as float32, which holds each of them exactly."""
        with damage(self._source.path):
            dtype, (address, size) = self._dtype(), self._place()
            if size != prod(self.shape) * dtype.itemsize:
                raise ValueError(f"{self.name} has {size} bytes, which are not {self.shape}")
            data = self._source.read(address, size)
            array: Array = np.frombuffer(data, dtype).reshape(self.shape)
            if dtype == np.dtype("<u2"):
                return (array.astype(np.uint32) << 16).view(np.float32)
            return array

    def _dtype(self) -> np.dtype[Any]:
        """Of the bytes; uint16 for bfloat16, which is an opaque type of 2 bytes to Keras."""
        kind, bits, size, properties = hdf5_header.kind_of(
            self._header.first(hdf5_header.TYPE) or b""
        )
        if kind == hdf5_header.FLOAT and properties[:12] in _FLOATS:
            return np.dtype((">" if bits & 1 else "<") + _FLOATS[properties[:12]])
        if kind == hdf5_header.OPAQUE and size == 2:
            return np.dtype("<u2")
        raise ValueError(f"{self.name} is no array of floats")

    def _place(self) -> tuple[int, int]:
        """Address and number of the bytes."""
        layout = self._header.first(hdf5_header.LAYOUT) or b""
        filters = self._header.first(hdf5_header.FILTERS)
        elsewhere = self._header.first(hdf5_header.EXTERNAL)
        if layout[:2] != CONTIGUOUS or filters is not None or elsewhere is not None:
            raise ValueError(
                f"{self.name} must be stored in one piece, without compression, in this file: "
                "h5repack -l CONTI -f NONE makes it so"
            )
        address, size = struct.unpack_from("<QQ", layout, 2)
        return address, size


class Group:
    """A group in an open file. What is in it is looked up by its plain name, never by a link.

    Attributes
    ----------
    name : str
        With the groups it is in, between slashes.
    """

    def __init__(self, source: Source, address: int, name: str) -> None:
        self._source, self._address, self.name = source, address, name
        self._header = Header(source, address)

    @property
    def key(self) -> tuple[int, int]:
        """What tells this group, by whatever name, from all others that are open."""
        return id(self._source), self._address

    def error(self, why: str) -> ValueError:
        """The error for a group in which something is wrong."""
        return damaged(self._source.path, f"{self.name}: {why}")

    def names(self) -> list[str]:
        """Names of the groups and arrays in it."""
        with damage(self._source.path):
            return list(self._entries)

    def get(self, name: str) -> Group | Variable | None:
        """The group or array of this name; None if there is none. ValueError for a link."""
        with damage(self._source.path):
            if name not in self._entries:
                return None
            address, kind = self._entries[name]
            if kind == SOFT_LINK:
                raise ValueError(f"{self.name}{name} is a link")
            header = Header(self._source, address)
            if header.first(hdf5_header.GROUP) is not None:
                return Group(self._source, address, f"{self.name}{name}/")
            return Variable(self._source, header, f"{self.name}{name}")

    def attribute(self, name: str) -> str | list[str] | None:
        """An attribute: a string, a list of strings, or None if there is none of this name."""
        with damage(self._source.path):
            return self._header.attribute(name)

    @cached_property
    def _entries(self) -> dict[str, tuple[int, int]]:
        """Address and kind of what is in the group, by name."""
        table = self._header.first(hdf5_header.GROUP)
        if table is None:
            raise ValueError(f"{self.name} has links of a kind that Keras does not write")
        tree, heap = struct.unpack_from("<QQ", table)
        mark, size, names = self._source.unpack("4s4xQ8xQ", heap)
        if mark != b"HEAP":
            raise ValueError(f"{self.name} has no names")
        entries = {}
        for leaf in self._leaves(tree):
            count = self._source.unpack("6xH", leaf)[0]
            for at in range(leaf + 8, leaf + 8 + 40 * count, 40):
                offset, address, kind = self._source.unpack("QQI", at)
                start = names + min(offset, size)
                text = self._source.read(start, min(LONGEST_NAME, names + size - start))
                entries[text[: text.index(b"\0")].decode()] = (address, kind)
        return entries

    def _leaves(self, tree: int, below: int = 256) -> Iterator[int]:
        """Addresses of the leaves of a tree whose level is below."""
        mark, level, count = self._source.unpack("4sxBH", tree)
        if mark != b"TREE" or level >= below:  # it could be its own child
            raise ValueError(f"{self.name} has a broken tree")
        for at in range(tree + 32, tree + 32 + 16 * count, 16):
            child = self._source.unpack("Q", at)[0]
            if level:
                yield from self._leaves(child, level)
            else:
                yield child
