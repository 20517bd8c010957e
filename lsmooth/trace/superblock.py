"""The first bytes of an HDF5 file, where a writer marks the file as its own.

A file that is open for writing, or whose writer was killed, carries that mark, and HDF5 refuses to open it for anyone
who does not ask for single-writer multiple-reader access: xarray, h5dump and HDFView do not. What a trace holds is in
order after every flush, so the mark is taken off again.
"""

from __future__ import annotations

import os

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SIZE = 48
_VERSION_AT, _FLAGS_AT, _CHECKSUM_AT = 8, 11, 44
_END = slice(28, 36)
_MASK = 0xFFFFFFFF
_WORDS = (0, 4, 8)


def end_of_file(descriptor: int) -> int:
    """Return where an HDF5 file of superblock version 3 ends by its own account, as of its last flush.

    Args:
        descriptor: The file, open for reading.
    """
    return int.from_bytes(os.pread(descriptor, _SIZE, 0)[_END], "little")


def clear_open_mark(descriptor: int) -> None:
    """Take the mark off a file of superblock version 3; leave any other file as it is.

    Args:
        descriptor: The file, open for reading and writing; nobody else writes to it at this moment.
    """
    head = os.pread(descriptor, _SIZE, 0)
    if len(head) < _SIZE or head[:8] != _SIGNATURE or head[_VERSION_AT] != 3 or not head[_FLAGS_AT]:
        return
    if _lookup3(head[:_CHECKSUM_AT]).to_bytes(4, "little") != head[_CHECKSUM_AT:]:
        return
    body = head[:_FLAGS_AT] + b"\0" + head[_FLAGS_AT + 1 : _CHECKSUM_AT]
    os.pwrite(descriptor, body + _lookup3(body).to_bytes(4, "little"), 0)


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (32 - bits)) & _MASK


def _lookup3(data: bytes) -> int:
    """Return the checksum that HDF5 puts behind its metadata: Bob Jenkins' lookup3 (2006), little-endian, seed 0."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    while len(data) > 12:
        a, b, c = _added((a, b, c), data)
        data = data[12:]
        a, c = (a - c & _MASK) ^ _rotated(c, 4), c + b & _MASK
        b, a = (b - a & _MASK) ^ _rotated(a, 6), a + c & _MASK
        c, b = (c - b & _MASK) ^ _rotated(b, 8), b + a & _MASK
        a, c = (a - c & _MASK) ^ _rotated(c, 16), c + b & _MASK
        b, a = (b - a & _MASK) ^ _rotated(a, 19), a + c & _MASK
        c, b = (c - b & _MASK) ^ _rotated(b, 4), b + a & _MASK
    a, b, c = _added((a, b, c), data.ljust(12, b"\0"))
    # `final` of lookup3: x ^= y, then x -= y rotated.
    c = (c ^ b) - _rotated(b, 14) & _MASK
    a = (a ^ c) - _rotated(c, 11) & _MASK
    b = (b ^ a) - _rotated(a, 25) & _MASK
    c = (c ^ b) - _rotated(b, 16) & _MASK
    a = (a ^ c) - _rotated(c, 4) & _MASK
    b = (b ^ a) - _rotated(a, 14) & _MASK
    return (c ^ b) - _rotated(b, 24) & _MASK


def _added(state: tuple[int, int, int], data: bytes) -> tuple[int, int, int]:
    a, b, c = (
        (word + int.from_bytes(data[i : i + 4], "little")) & _MASK for word, i in zip(state, _WORDS, strict=True)
    )
    return a, b, c
