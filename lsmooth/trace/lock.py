"""One writer a file: a lock that ends with the process that holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

from lsmooth.errors import LsmoothError, TraceError

# A byte far beyond any file's end: HDF5 puts its own locks elsewhere, and readers are not kept out.
_LOCK_BYTE = 1 << 60
# C's `struct flock`: type, whence, start, length, process.
_FLOCK = "hhqqi4x"


def being_written(path: Path) -> TraceError:
    """Return the error for a trace that has a writer already."""
    return TraceError(
        f"{path} is being written by another recorder; close it or wait for it to end, or choose another name."
    )


def lock_as_writer(path: Path, busy_error: Callable[[Path], LsmoothError] = being_written) -> int:
    """Lock a file against other writers until the returned descriptor is given to `unlock`, or the process ends.

    Args:
        path: The file.
        busy_error: Makes the error for a file that has a writer already.

    Raises:
        LsmoothError: Another writer holds the lock.
        OSError: The file may not be written.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        _lock(descriptor, fcntl.F_WRLCK)
        # Between opening and locking, a writer may have put another file in this one's place.
        busy = not is_file_at(path, descriptor)
    except (BlockingIOError, PermissionError):
        busy = True
    except OSError:
        # A file system without locks: nothing keeps a second writer out, and nothing keeps this one from writing.
        busy = False
    if busy:
        os.close(descriptor)
        raise busy_error(path)
    return descriptor


def unlock(descriptor: int) -> None:
    """Give up a lock and close its descriptor."""
    # A lock outlives `close` while a forked process (a data loader's worker) still has the descriptor.
    with contextlib.suppress(OSError):
        _lock(descriptor, fcntl.F_UNLCK)
    os.close(descriptor)


def is_file_at(path: Path, descriptor: int) -> bool:
    """Say whether an open file is the one that stands at a path now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def is_being_written(path: Path) -> bool:
    """Say whether a writer is at work on a file now; it no longer is once it has closed the file or was killed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if hasattr(fcntl, "F_OFD_GETLK"):
            # Asking takes no lock, so that a look at a file never stands in a writer's way.
            answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _request(fcntl.F_RDLCK))
            kind: int = struct.unpack(_FLOCK, answer)[0]
            return kind != fcntl.F_UNLCK
        _lock(descriptor, fcntl.F_RDLCK)
        _lock(descriptor, fcntl.F_UNLCK)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _lock(descriptor: int, kind: int) -> None:
    if hasattr(fcntl, "F_OFD_SETLK"):
        # Locks of open file descriptions hold between two recorders of one process too, and are not lost when the
        # process reads the trace and closes it again.
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _request(kind))
    else:
        flag = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX}.get(kind, fcntl.LOCK_UN)
        fcntl.lockf(descriptor, flag | fcntl.LOCK_NB, 1, _LOCK_BYTE, os.SEEK_SET)


def _request(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, _LOCK_BYTE, 1, 0)
