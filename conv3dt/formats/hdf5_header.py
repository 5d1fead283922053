"""The bytes of an HDF5 file, the headers of its objects, and the strings in them.

Layouts, little-endian; sizes and addresses are u64, addresses from the start of the file:

    header      version 1, _, number of messages u16, references u32, size u32, padding u32
    message     kind u16, size u16, flags u8, 3 unused, body
    attribute   version, flags, sizes u16 of name, type and space; these three; the values
    string      in the value itself, or there: length u32, address u64 and index u32 in a heap
    heap        "GCOL", version, 3 unused, size; objects: index u16, 6 unused, size, bytes
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

# Kinds of messages.
SPACE, TYPE, EXTERNAL, LAYOUT, FILTERS, ATTRIBUTE, CONTINUATION, GROUP = (
    0x01, 0x03, 0x07, 0x08, 0x0B, 0x0C, 0x10, 0x11
)  # fmt: skip
# Classes of types.
FLOAT, STRING, OPAQUE, VARIABLE_LENGTH = 1, 3, 5, 9

# Messages in a header; Keras has a dozen. Bits of the flags: the body, or its type, is elsewhere.
MOST_MESSAGES = 256
SHARED_BODY, SHARED_PARTS = 2, 3


class Source:
    """The bytes of a file; errors call it `path`.

    Only so many of them are read that a file that leads in circles comes to an end.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self.path = file, path
        self.size = os.fstat(file.fileno()).st_size
        self._left = 16 * self.size + (1 << 20)

    def read(self, at: int, count: int) -> bytes:
        """Bytes from `at`. ValueError if the file has not so many."""
        if at + count > self.size:
            raise ValueError(f"it ends before byte {at + count}")
        self._left -= max(count, 16)
        if self._left < 0:
            raise ValueError("its parts refer to each other without end")
        self._file.seek(at)
        return self._file.read(count)

    def unpack(self, layout: str, at: int) -> tuple[Any, ...]:
        """Numbers from `at`, little-endian."""
        return struct.unpack("<" + layout, self.read(at, struct.calcsize("<" + layout)))


class Header:
    """The header of an object: what it is, and its attributes."""

    def __init__(self, source: Source, address: int) -> None:
        self._source = source
        self._messages = list(_messages(source, address))

    def first(self, kind: int) -> bytes | None:
        """The body of the first message of a kind."""
        return next((body for found, body in self._messages if found == kind), None)

    def attribute(self, name: str) -> str | list[str] | None:
        """An attribute that is a string or a list of strings; None if there is none."""
        for kind, body in self._messages:
            if kind == ATTRIBUTE:
                parts = _attribute(body)
                if parts[0].rstrip(b"\0") == name.encode():
                    return _strings(self._source, name, *parts[1:])
        return None


def sizes(space: bytes) -> tuple[int, ...]:
    """The shape that a dataspace is."""
    version, rank = struct.unpack_from("<BB", space)
    if version == 2 and space[3] == 2:
        raise ValueError("it has an array without a shape")
    return struct.unpack_from(f"<{rank}Q", space, 8 if version == 1 else 4)


def kind_of(datatype: bytes) -> tuple[int, int, int, bytes]:
    """Class, first bits, size in bytes, and properties of a datatype."""
    version_and_class, bits, size = struct.unpack_from("<BBxxI", datatype)
    return version_and_class & 15, bits, size, datatype[8:]


def _messages(source: Source, address: int) -> Iterator[tuple[int, bytes]]:
    version, count, size = source.unpack("BxHxxxxIxxxx", address)
    if version != 1 or count > MOST_MESSAGES:
        raise ValueError("its format is not the one that h5py, and so Keras, writes")
    blocks = [(address + 16, size)]
    for at, size in blocks:
        end = at + size
        while at + 8 <= end and count > 0:
            kind, size, flags = source.unpack("HHBxxx", at)
            body = source.read(at + 8, size)
            if flags & SHARED_BODY:
                kind = -1  # elsewhere in the file: nothing of Keras' is
            elif kind == CONTINUATION:
                blocks.append(struct.unpack_from("<QQ", body))
            yield kind, body
            at += 8 + size
            count -= 1


def _attribute(body: bytes) -> list[bytes]:
    """Name, type, space and values of an attribute."""
    version, flags, *lengths = struct.unpack_from("<BBHHH", body)
    if version not in (1, 2, 3) or version > 1 and flags & SHARED_PARTS:
        raise ValueError(f"it has an attribute of the unknown version {version}")
    at = 9 if version == 3 else 8
    parts = []
    for length in lengths:
        parts.append(body[at : at + length])
        at += -(-length // 8) * 8 if version == 1 else length
    return [*parts, body[at:]]


def _strings(
    source: Source, name: str, datatype: bytes, space: bytes, values: bytes
) -> str | list[str]:
    shape = sizes(space)
    if 0 in shape:
        return []  # of whatever type: Keras gives an empty list that of numbers
    group, bits, width, _ = kind_of(datatype)
    end = width * prod(shape)
    if not 0 < end <= len(values):
        raise ValueError(f"attribute {name} has {len(values)} bytes, and not {end}")
    items = [values[at : at + width] for at in range(0, end, width)]
    if group == VARIABLE_LENGTH and bits & 15 == 1:
        items = _from_heaps(source, [struct.unpack("<IQI", item) for item in items])
    elif group != STRING:
        raise ValueError(f"attribute {name} is no string")
    texts = [item.rstrip(b"\0").decode() for item in items]
    return texts if shape else texts[0]


def _from_heaps(source: Source, places: list[tuple[int, int, int]]) -> list[bytes]:
    """The strings of these lengths, in the heaps at these addresses, of these indices."""
    heaps = {address: _heap(source, address) for _, address, _ in places}
    return [source.read(heaps[address][index], length) for length, address, index in places]


def _heap(source: Source, address: int) -> dict[int, int]:
    """Where the bytes of each object in a heap begin."""
    mark, size = source.unpack("4s4xQ", address)
    if mark != b"GCOL":
        raise ValueError("a string is not where it should be")
    found: dict[int, int] = {}
    at, end = address + 16, address + size
    while at + 16 <= end:
        index, size = source.unpack("H6xQ", at)
        if index == 0:  # the rest is free
            break
        found[index] = at + 16
        at += 16 + -(-size // 8) * 8
    return found
