"""One writer a trace: a lock that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from lsmooth.errors import TraceError

# A byte far beyond any file's end: HDF5 puts its own locks elsewhere, and readers are not kept out.
_LOCK_BYTE = 1 << 60


def lock_as_writer(path: Path) -> int:
    """Lock a file against other writers for as long as the returned descriptor is open.

    Raises:
        TraceError: Another writer holds the lock, or the file may not be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError as error:
        raise TraceError(
            f"{path} cannot be written: {error.strerror}; choose another name, or change its permissions."
        ) from error
    try:
        _lock(descriptor, fcntl.F_WRLCK)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise TraceError(
            f"{path} is being written by another recorder; wait for it to end, or choose another name."
        ) from None
    except OSError:
        # A file system without locks: nothing keeps a second writer out, and nothing keeps this one from writing.
        pass
    return descriptor


def is_being_written(path: Path) -> bool:
    """Say whether a writer is at work on a file now; it no longer is once it has closed the file or was killed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _lock(descriptor, fcntl.F_RDLCK)
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
        # process reads the trace and closes it again. The request is a C `struct flock`.
        request = struct.pack("hhqqi4x", kind, os.SEEK_SET, _LOCK_BYTE, 1, 0)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    else:
        flag = fcntl.LOCK_SH if kind == fcntl.F_RDLCK else fcntl.LOCK_EX
        fcntl.lockf(descriptor, flag | fcntl.LOCK_NB, 1, _LOCK_BYTE, os.SEEK_SET)
