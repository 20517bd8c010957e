"""Calls to the operating system for a writer: disk space, syncing, renaming, null devices, and reasons of errors."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from pathlib import Path
from typing import Any

from lsmooth.errors import InvalidArgumentError

# HDF5 writes index entries beside a block of chunks; they never need more bytes than this.
INDEX_BYTES = 1 << 16
# System errors of a path that can never be that of a file.
NEVER_A_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)
# System errors where a file system does not support reserving space or syncing.
_NO_PROMISES = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def path_text(path: Any) -> str:
    """Return a path as text; bytes are names in the encoding of the file system.

    Raises:
        InvalidArgumentError: It is no path.
    """
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise InvalidArgumentError(
            f'A trace is a file, and its path text or a pathlib.Path, not {type(path).__name__}; give it as "run.h5".'
        ) from None
    if "\0" in text:
        raise InvalidArgumentError(f"The path {text!r} holds a null character, which no file name may; leave it out.")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"The path {text!a} has characters that file names cannot have here, whose encoding is "
            f"{error.encoding}; choose another name, or set PYTHONUTF8=1 in the environment."
        ) from None
    return text


def reserve(descriptor: int, size: int) -> None:
    """Reserve disk space behind a file's end, so that HDF5 does not start changes that it cannot finish.

    Args:
        descriptor: The file, open for writing.
        size: Bytes of data that are about to be written.

    Raises:
        OSError: The disk is full.
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
    # Without reserved space, set at least the length.
    os.ftruncate(descriptor, end + size)


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Return `size` bytes of a file from `offset` on, fewer if it ends before."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    # On Windows; seeking is safe, since nobody else uses the descriptor.
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write bytes at an offset of a file, without HDF5."""
    while data:
        if hasattr(os, "pwrite"):
            written = os.pwrite(descriptor, data, offset)
        else:
            os.lseek(descriptor, offset, os.SEEK_SET)
            written = os.write(descriptor, data)
        data, offset = data[written:], offset + written


class PacedSync:
    """Syncs a file to the disk, at most a tenth of the time; only synced data survives a loss of power.

    Args:
        descriptor: The file, open for writing.
        folder: The folder of the file; the first call syncs its entry too.
    """

    def __init__(self, descriptor: int, folder: Path) -> None:
        self._descriptor = descriptor
        self._folder: Path | None = folder
        self._next = 0.0

    def is_due(self) -> bool:
        """Say whether nine times the duration of the last sync has passed since."""
        return time.monotonic() >= self._next

    def now(self) -> None:
        """Wait until all written data is on the disk.

        Raises:
            OSError: The disk failed.
        """
        started = time.monotonic()
        sync(self._descriptor)
        if self._folder is not None:
            sync_folder(self._folder)
            self._folder = None
        ended = time.monotonic()
        self._next = ended + 9 * (ended - started)


def sync(descriptor: int) -> None:
    """Wait until all data written to a file is on the disk.

    Raises:
        OSError: The disk failed.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems do not support syncing.
        if error.errno not in _NO_PROMISES:
            raise


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on the disk, if the system permits opening folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def redirect(descriptor: int) -> None:
    """Redirect a descriptor to the null device, so that later writes to it are lost."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, descriptor, inheritable=False)
    os.close(nowhere)


# Device and inode of files that HDF5 has open in a forked process only because the parent's writer had.
_INHERITED: set[tuple[int, int]] = set()


def note_inherited(descriptor: int) -> None:
    """Remember, in a forked process, a file whose HDF5 handles are the parent's."""
    found = os.fstat(descriptor)
    _INHERITED.add((found.st_dev, found.st_ino))


def is_inherited(path: Path) -> bool:
    """Say whether opening a file by its path would make HDF5 reuse the parent process's handles."""
    if not _INHERITED:
        return False
    found = os.stat(path)
    return (found.st_dev, found.st_ino) in _INHERITED


def rename_without_replacing(source: Path, target: Path) -> None:
    """Rename a file, unless a file of the new name exists.

    Raises:
        FileExistsError: A file of that name exists.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        # Without hard links, the process that first creates an empty file may replace it.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        source.replace(target)


# System errors that say nothing about a file's contents: permissions, locks, too many open files, a broken disk.
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
    """Say whether an error is the system's, and not due to a file's contents."""
    return system_number(error) in _OF_THE_SYSTEM


def system_number(error: Exception) -> int | None:
    """Return the errno of an error, also where HDF5 quotes it; None for an error that is not the system's."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    said = re.search(r"errno = (\d+)", str(error))
    return int(said[1]) if said else None


def reason(error: Exception) -> str:
    """Return the reason of an error, in the system's words if HDF5 quotes them."""
    text = str(error)
    if said := re.search(r"error message = '([^']+)'", text):
        return said[1]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return text.split("\n")[0] or type(error).__name__


def umask() -> int:
    """Return the process's umask, the permissions that new files do not get."""
    value = os.umask(0)
    os.umask(value)
    return value
