"""What glibc does with the memory that training frees."""

from __future__ import annotations

import ctypes
import os
import sys

# Options of mallopt in malloc.h, and how much freed memory glibc was told to keep.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_kept_bytes = 0


def keep_freed_memory(gradient_bytes: int) -> None:
    """Have glibc keep freed memory, rather than give it back and fetch it again, page by page, at every replay.

    It then keeps the 64 MiB that it comes to keep by itself where blocks of 32 MiB are freed, and room for two
    gradients, but no more than 1 GiB (mallopt(3)). Where the environment says how glibc is to go about it, or there is
    no mallopt, this does nothing.
    """
    global _kept_bytes
    told = any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"))
    if told or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    _kept_bytes = max(_kept_bytes, min((1 << 26) + 2 * gradient_bytes, 1 << 30))
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 25)
        mallopt(_M_TRIM_THRESHOLD, _kept_bytes)
