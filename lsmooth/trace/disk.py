"""What a writer asks of the operating system: room, a name for a file, silence, and the reason of a refusal."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from pathlib import Path

# HDF5 writes index entries beside a block of chunks; they never need more bytes than this.
INDEX_BYTES = 1 << 16
# What the system says of a path that can never be a file's.
NEVER_A_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)
# What it says where it promises no space at all.
_NO_PROMISES = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def reserve(descriptor: int, size: int) -> None:
    """Claim disk space behind a file's end, before HDF5 changes anything that could not be finished.

    Args:
        descriptor: The file, open for writing.
        size: Bytes of data that are about to be written.

    Raises:
        OSError: There is no room.
    """
    end = os.fstat(descriptor).st_size
    size += size // 8 + INDEX_BYTES
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, end, size)
            return
        except OSError as error:
            if error.errno not in _NO_PROMISES:
                raise
    # The file gets its length, at least.
    os.ftruncate(descriptor, end + size)


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Return bytes of a file, fewer where it ends before."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    # Windows: the descriptor has no other reader.
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write bytes at an offset of a file, past HDF5."""
    while data:
        if hasattr(os, "pwrite"):
            written = os.pwrite(descriptor, data, offset)
        else:
            os.lseek(descriptor, offset, os.SEEK_SET)
            written = os.write(descriptor, data)
        data, offset = data[written:], offset + written


class PacedSync:
    """Brings what was written to a file onto the disk itself, at most a tenth of the time.

    Only what has been brought there outlasts a loss of power.

    Args:
        descriptor: The file, open for writing.
        folder: The folder that it stands in. Its entry is brought to the disk with the first call.
    """

    def __init__(self, descriptor: int, folder: Path) -> None:
        self._descriptor = descriptor
        self._folder: Path | None = folder
        self._next = 0.0

    def is_due(self) -> bool:
        """Say whether enough time has passed since the last call took its time."""
        return time.monotonic() >= self._next

    def now(self) -> None:
        """Wait until the disk has all that was written.

        Raises:
            OSError: The disk could not take it.
        """
        started = time.monotonic()
        sync(self._descriptor)
        if self._folder is not None:
            sync_folder(self._folder)
            self._folder = None
        ended = time.monotonic()
        self._next = ended + 9 * (ended - started)


def sync(descriptor: int) -> None:
    """Wait until the disk has all that was written to a file.

    Raises:
        OSError: The disk could not take it.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        # A file system that knows no such thing.
        if error.errno not in _NO_PROMISES:
            raise


def sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's entries, where the system lets folders be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def redirect(descriptor: int) -> None:
    """Let a descriptor lead to the null device: whatever is written to it from now on is lost."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, descriptor, inheritable=False)
    os.close(nowhere)


# Files that HDF5 has open in a forked process because a writer of its parent had: device and inode.
_INHERITED: set[tuple[int, int]] = set()


def note_inherited(descriptor: int) -> None:
    """Remember, in a forked process, a file whose HDF5 handles are the parent's."""
    found = os.fstat(descriptor)
    _INHERITED.add((found.st_dev, found.st_ino))


def is_inherited(path: Path) -> bool:
    """Say whether HDF5 would take up the parent's handles of a file, were it opened here by its path."""
    if not _INHERITED:
        return False
    found = os.stat(path)
    return (found.st_dev, found.st_ino) in _INHERITED


def rename_without_replacing(source: Path, target: Path) -> None:
    """Give a file its name, unless another file has it.

    Raises:
        FileExistsError: Another file has that name.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links: whoever creates the empty file first may replace it.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        source.replace(target)


# Errors of the system that say nothing of a file's contents: rights, locks, a full table of files, a broken disk.
_OF_THE_SYSTEM = frozenset(
    getattr(errno, name)
    for name in (
        *("EACCES", "EPERM", "ENOLCK", "EAGAIN", "EWOULDBLOCK", "EBUSY", "EMFILE", "ENFILE", "ENOMEM", "EINTR"),
        *("EIO", "EREMOTEIO", "ESTALE", "ENODEV", "ENXIO", "ETIMEDOUT", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN"),
        *("EHOSTUNREACH", "ECONNRESET", "ECONNREFUSED", "ENOTCONN", "ESHUTDOWN", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"),
    )
    if hasattr(errno, name)
)


def is_of_the_system(error: Exception) -> bool:
    """Say whether an error tells of the system, and nothing of what a file holds."""
    return system_number(error) in _OF_THE_SYSTEM


def system_number(error: Exception) -> int | None:
    """Return the system's number of an error, also where HDF5 quotes it; None for errors that are not the system's."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    said = re.search(r"errno = (\d+)", str(error))
    return int(said[1]) if said else None


def reason(error: Exception) -> str:
    """Return why something could not be written, in the system's words where HDF5 quotes them."""
    text = str(error)
    if said := re.search(r"error message = '([^']+)'", text):
        return said[1]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return text.split("\n")[0] or type(error).__name__


def umask() -> int:
    """Return the permissions that this process takes from new files."""
    value = os.umask(0)
    os.umask(value)
    return value
