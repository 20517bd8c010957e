"""Reads the number of chunks that the index of a dataset claims, without HDF5.

HDF5 visits every entry of an extensible array up to the last one that its header claims. A small damaged file can claim
so many that a reader would be busy for years. So the claim is read here first, by the HDF5 file format specification
(version 3.0, sections IV.A.1.b, IV.A.2.i and VII.C).
"""

from __future__ import annotations

from collections.abc import Iterator

from lsmooth.trace.disk import read_at

_LAYOUT, _CONTINUATION = 0x08, 0x10
_CHUNKED, _EXTENSIBLE_ARRAY = 2, 4
_UNDEFINED = (1 << 64) - 1
# A dataset's header has a handful of blocks.
_MOST_BLOCKS = 64
_MOST_BYTES = 1 << 20
# In the header of an extensible array: the offset of the highest index that was ever set, and the header's length.
_HIGHEST_AT, _HEADER_SIZE = 44, 72


def claimed_chunks(descriptor: int, address: int) -> int:
    """Return the number of chunks that a dataset's index claims.

    Args:
        descriptor: The file, open for reading.
        address: Address of the dataset's object header.

    Raises:
        ValueError: The index is no extensible array, as every dataset along `step` has.
    """
    for kind, body in _messages(descriptor, address):
        if kind == _LAYOUT:
            index = _array_address(body)
            if index == _UNDEFINED:
                return 0
            header = read_at(descriptor, _HEADER_SIZE, index)
            if len(header) < _HEADER_SIZE or header[:4] != b"EAHD":
                raise ValueError("its index of chunks is not where it should be")
            return _number(header[_HIGHEST_AT : _HIGHEST_AT + 8])
    raise ValueError("its index of chunks is not known")


def _array_address(body: bytes) -> int:
    """Return the address of the extensible array in a layout message of version 4 or 5."""
    if len(body) < 5 or body[0] not in (4, 5) or body[1] != _CHUNKED:
        raise ValueError("its layout is not that of a trace")
    kind_at = 5 + body[3] * body[4]
    # Five bytes of parameters stand between the kind of index and its address.
    if len(body) < kind_at + 14 or body[kind_at] != _EXTENSIBLE_ARRAY:
        raise ValueError("its index of chunks is of another kind")
    return _number(body[kind_at + 6 : kind_at + 14])


def _messages(descriptor: int, address: int) -> Iterator[tuple[int, bytes]]:
    """Yield kind and body of the messages in an object header of version 2."""
    start = read_at(descriptor, 32, address)
    if start[:5] != b"OHDR\x02" or len(start) < 32:
        raise ValueError("its header is not that of a trace")
    flags = start[5]
    place = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
    width = 1 << (flags & 3)
    size = _number(start[place : place + width])
    blocks = [(address + place + width, size)]
    for _ in range(_MOST_BLOCKS):
        if not blocks:
            return
        at, size = blocks.pop(0)
        block, place = read_at(descriptor, min(size, _MOST_BYTES), at), 0
        head = 4 + 2 * bool(flags & 4)
        while place + head <= len(block):
            kind, length = block[place], _number(block[place + 1 : place + 3])
            body = block[place + head : place + head + length]
            place += head + length
            if kind == _CONTINUATION and length == 16:
                # A block has a signature before its messages and a checksum behind them.
                blocks.append((_number(body[:8]) + 4, max(0, _number(body[8:]) - 8)))
            else:
                yield kind, body
    raise ValueError("its header has too many parts")


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")
