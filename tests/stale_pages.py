"""Files as a loss of power leaves them: some pages of 4 KiB are older copies of themselves."""

import random

import numpy as np
from rows import rows

from lsmooth.errors import TraceError
from lsmooth.trace import superblock
from lsmooth.trace.density import BINS_PER_DECADE, GRAD_DECADES, SMOOTHNESS_DECADES, Counts
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter

PAGE = 4096


def counts_after(header, steps):
    """Return counts of all coordinates that tell after how many steps they were made."""
    bins = [BINS_PER_DECADE * (high - low) for low, high in (GRAD_DECADES, SMOOTHNESS_DECADES)]
    counts = np.zeros((len(header.parameters), *bins), np.int64)
    counts[:, steps % bins[0], :] = steps
    return Counts(counts, steps)


def history(path, header, blocks, *, close):
    """Write a trace; return its bytes at every moment at which its writer had brought something in order.

    The first moment is the one before anything had been written.
    """
    moments = [b""]
    real = superblock.state_end

    def noted(descriptor, end):
        real(descriptor, end)
        moments.append(path.read_bytes())

    writer = TraceWriter(path, header, "w")
    done = 0
    try:
        superblock.state_end = noted
        for block in blocks:
            density = counts_after(header, done + block) if header.densities else None
            writer.append(rows(header, done, done + block), density)
            done += block
            moments.append(path.read_bytes())
    finally:
        superblock.state_end = real
    if close:
        writer.close()
    else:
        writer.abandon()
    moments.append(path.read_bytes())
    return moments


def with_stale_pages(moments, generator, pages):
    """Return the last bytes of a history, with pages from earlier moments, of zeros where there was none yet."""
    data = bytearray(moments[-1])
    for _ in range(pages):
        early = moments[generator.randrange(len(moments) - 1)]
        start = PAGE * generator.randrange(-(-len(data) // PAGE))
        size = len(data[start : start + PAGE])
        data[start : start + PAGE] = early[start : start + PAGE][:size].ljust(size, b"\0")
    return bytes(data)


def wrong_numbers(path, header, truth, count):
    """Read a file in every way; return which numbers are wrong, and whether it was read at all."""
    wrong = []
    try:
        with Trace(path) as trace:
            read = len(trace)
            if read > count or (trace.state == "complete" and read != count):
                wrong.append(f"{read} rows")
            for name, values in truth.items():
                found = trace.read(name)
                if not np.array_equal(found, values[:read].astype(found.dtype)):
                    wrong.append(name)
            if header.densities:
                found = trace.density_counts()
                if not np.array_equal(found.counts, counts_after(header, found.steps).counts):
                    wrong.append("densities")
                if trace.state == "complete" and found.steps != count:
                    wrong.append(f"densities of {found.steps} steps")
    except TraceError as error:
        if str(path) not in str(error) or "\n" in str(error):
            wrong.append(f"not one sentence: {error}")
        return wrong, False
    return wrong, True


def some_pages(seed):
    """Return how many pages of a file are older: most often one."""
    return random.Random(seed).choice([1, 1, 2, 5, 20])
