"""The superblock, the first bytes of an HDF5 file, with a writer's mark and the stated end of the file.

HDF5 marks a file that is open for writing, and a killed writer leaves the mark. HDF5 then refuses to open the file
without single-writer multiple-reader access, which xarray, h5dump and HDFView do not request. Since a trace is
consistent after every flush, its writer removes the mark.

HDF5 reads nothing beyond the stated end, and writes that end last. A writer that is killed just before would leave
structures beyond it. So the trace's writer states the end first.
"""

from __future__ import annotations

import io
import os
from typing import Any

from lsmooth.trace.disk import read_at, write_at

# Device and number of a file, its size, and its first bytes.
FileState = tuple[int, int, int, bytes]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SIZE = 48
_VERSION_AT, _FLAGS_AT, _CHECKSUM_AT = 8, 11, 44
_END = slice(28, 36)
_MASK = 0xFFFFFFFF
_WORDS = (0, 4, 8)


def stated_end(descriptor: int) -> int:
    """Return the stated end, in bytes, of an HDF5 file of superblock version 3.

    Args:
        descriptor: The file, open for reading.
    """
    return int.from_bytes(read_at(descriptor, _SIZE, 0)[_END], "little")


class Mended(io.RawIOBase):
    """A file as it would be without the mark and with its real end, for HDF5 to read.

    A killed writer leaves a file that must be read this way.

    Args:
        path: The file.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._bytes = open(path, "rb", buffering=0)  # noqa: SIM115
        head = self._bytes.read(_SIZE)
        self._size = os.fstat(self._bytes.fileno()).st_size
        self._head = _mended(head, self._size) or head
        self._place = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position, and return it."""
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        """Return the position."""
        return self._place

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read from the position on, and return the number of bytes."""
        view = memoryview(buffer).cast("B")
        data = read_at(self._bytes.fileno(), len(view), self._place)
        if self._place < len(self._head):
            data = self._head[self._place : self._place + len(view)] + data[len(self._head) - self._place :]
        view[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self._bytes.close()
        super().close()


def file_state(path: str | os.PathLike[str]) -> FileState | None:
    """Return values that change whenever a file is flushed or replaced; None if there is no file."""
    # Opening a pipe would wait for a process at its other end.
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            return status.st_dev, status.st_ino, status.st_size, file.read(_SIZE)
    except OSError:
        return None


def needs_mending(path: str | os.PathLike[str]) -> bool:
    """Say whether a file has the mark, or its size is not the stated end."""
    with open(path, "rb", buffering=0) as file:
        head = file.read(_SIZE)
        size = os.fstat(file.fileno()).st_size
    return _is_ours(head) and (head[_FLAGS_AT] != 0 or int.from_bytes(head[_END], "little") != size)


def missing_bytes(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return the size and the stated size of a file that was cut off, in bytes; None if it was not."""
    with open(path, "rb", buffering=0) as file:
        head = file.read(_SIZE)
        size = os.fstat(file.fileno()).st_size
    if len(head) < _SIZE:
        return size, _SIZE
    end = int.from_bytes(head[_END], "little")
    return (size, end) if _is_ours(head) and size < end else None


def state_end(descriptor: int, end: int) -> None:
    """Remove the mark of a file of superblock version 3, and state its end; leave any other file unchanged.

    Args:
        descriptor: The file, open for reading and writing; nobody else may write to it meanwhile.
        end: The end, in bytes, beyond which HDF5 reads nothing.
    """
    head = read_at(descriptor, _SIZE, 0)
    mended = _mended(head, end)
    if mended is not None and mended != head:
        write_at(descriptor, mended, 0)


def _is_ours(head: bytes) -> bool:
    return (
        len(head) == _SIZE
        and head[:8] == _SIGNATURE
        and head[_VERSION_AT] == 3
        and lookup3(head[:_CHECKSUM_AT]).to_bytes(4, "little") == head[_CHECKSUM_AT:]
    )


def _mended(head: bytes, end: int) -> bytes | None:
    """Return the superblock without the mark and with that end; None if it is not one of a trace."""
    if not _is_ours(head):
        return None
    body = head[:_FLAGS_AT] + b"\0" + head[_FLAGS_AT + 1 : _END.start] + end.to_bytes(8, "little")
    body += head[_END.stop : _CHECKSUM_AT]
    return body + lookup3(body).to_bytes(4, "little")


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (32 - bits)) & _MASK


def lookup3(data: bytes) -> int:
    """Return HDF5's checksum of metadata: Bob Jenkins' lookup3 (2006), little-endian, seed 0."""
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
