"""A lock that permits one writer for a file, and ends with the process that holds it.

It is a lock of the operating system: `fcntl` on POSIX systems, `msvcrt` on Windows. Where neither can lock, a warning
says so.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py

from lsmooth.errors import LsmoothError, TraceError, TraceWarning

fcntl: ModuleType | None
msvcrt: ModuleType | None
try:
    import fcntl
except ImportError:
    fcntl = None
try:
    import msvcrt
except ImportError:
    msvcrt = None

# The locked byte is far beyond any file's end, so that it differs from HDF5's own locks, and readers are not blocked.
_LOCK_BYTE = 1 << 60
# Windows locks at a descriptor's position, which must be a possible one.
_PLACED_LOCK_BYTE = 1 << 40
# C's `struct flock`: type, whence, start, length, process.
_FLOCK = "hhqqi4x"
# Without this flag, Windows would convert line ends.
_BINARY: int = getattr(os, "O_BINARY", 0)


def being_written(path: Path) -> TraceError:
    """Return the error for a trace that another writer has locked."""
    return TraceError(
        f"{path} is being written by another recorder; close it or wait for it to end, or choose another name."
    )


def lock_as_writer(path: Path, busy_error: Callable[[Path], LsmoothError] = being_written) -> int:
    """Lock a file against other writers until the returned descriptor is given to `unlock`, or the process ends.

    Args:
        path: The file.
        busy_error: Makes the error for a file that another writer has locked.

    Raises:
        LsmoothError: Another writer holds the lock.
        OSError: The file may not be written.
    """
    descriptor = os.open(path, os.O_RDWR | _BINARY)
    try:
        _lock(descriptor)
        # Between opening and locking, a writer may have replaced the file.
        busy = not is_file_at(path, descriptor)
    except (BlockingIOError, PermissionError):
        busy = True
    except OSError as error:
        busy = False
        warnings.warn(
            f"{path} cannot be locked ({error.strerror}), so that nothing keeps a second recorder from writing to it; "
            "give each run its own path.",
            TraceWarning,
            stacklevel=2,
        )
    if busy:
        os.close(descriptor)
        raise busy_error(path)
    return descriptor


def unlock(descriptor: int) -> None:
    """Release a lock and close its descriptor."""
    # Explicitly, since `close` does not release the lock while a forked process (a data loader's worker) still has the
    # descriptor.
    with contextlib.suppress(OSError):
        _unlock(descriptor)
    os.close(descriptor)


def is_file_at(path: Path, descriptor: int) -> bool:
    """Say whether an open file is the one at a path now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def is_being_written(path: Path) -> bool:
    """Say whether a writer has locked a file now, and has neither closed it nor been killed.

    It is always False where files cannot be locked.
    """
    descriptor = os.open(path, os.O_RDONLY | _BINARY)
    try:
        if fcntl is not None and hasattr(fcntl, "F_OFD_GETLK"):
            # A query takes no lock, and so never blocks a writer.
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _request(fcntl.F_RDLCK))
            kind: int = struct.unpack(_FLOCK, answer)[0]
            return kind != fcntl.F_UNLCK
        _lock(descriptor, shared=True)
        _unlock(descriptor)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def open_hdf5(path: str | os.PathLike[str], mode: str, **options: Any) -> h5py.File:
    """Open an HDF5 file, without HDF5's own lock (`flock`) where the file system refuses it.

    Args:
        path: The file.
        mode: As for `h5py.File`.
        options: As for `h5py.File`.

    Raises:
        OSError: It cannot be opened, or another tool has locked it.
    """
    try:
        return h5py.File(path, mode, **options)
    except BlockingIOError:
        raise
    except OSError as error:
        # HDF5 wants a process to open a file with the same setting each time; other tools use the default, so it is
        # tried first.
        if "lock" not in str(error):
            raise
        return h5py.File(path, mode, locking=False, **options)


def _lock(descriptor: int, *, shared: bool = False) -> None:
    """Take the lock.

    Raises:
        BlockingIOError, PermissionError: Another process, or another recorder of this process, has the lock.
        OSError: The file cannot be locked.
    """
    if fcntl is not None and hasattr(fcntl, "F_OFD_SETLK"):
        # Locks of open file descriptions also exclude a second recorder of the same process, and are not lost when the
        # process opens and closes the trace for reading.
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _request(fcntl.F_RDLCK if shared else fcntl.F_WRLCK))
    elif fcntl is not None:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.lockf(descriptor, kind | fcntl.LOCK_NB, 1, _LOCK_BYTE, os.SEEK_SET)
    elif msvcrt is not None:
        os.lseek(descriptor, _PLACED_LOCK_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        raise OSError(None, f"{sys.platform} has no file locks that are known here")


def _unlock(descriptor: int) -> None:
    if fcntl is not None and hasattr(fcntl, "F_OFD_SETLK"):
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _request(fcntl.F_UNLCK))
    elif fcntl is not None:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, _LOCK_BYTE, os.SEEK_SET)
    elif msvcrt is not None:
        os.lseek(descriptor, _PLACED_LOCK_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)


def _request(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, _LOCK_BYTE, 1, 0)
