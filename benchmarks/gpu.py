"""What a measured step and an optimizer's step cost on a GPU.

python benchmarks/run.py --only gpu
"""

import gc

import torch
from optimizers import compared, found_rows
from optimizers import timed as optimizer_steps
from recorder import POINTS, attached, millions_of, profiled, setting, textbook, timed, train, unmeasured
from row import Row

# Width, layers and vocabulary of a model, and tokens in a batch: at first so few that the host takes longer to launch
# kernels than the GPU to run them.
SETTINGS = {
    "0.1": ((64, 2, 500), 256),
    "5_2048": ((320, 4, 3000), 2048),
    "5": ((320, 4, 3000), 8192),
    "30": ((640, 6, 3000), 16384),
    "100": ((1024, 8, 1000), 4096),
}
KINDS = ("step", "floor", "measured", "played", "textbook")


def rows(short):
    sizes = ("0.1",) if short else tuple(SETTINGS)
    return [row for size in sizes for row in of_size(size)] + of_optimizers(3 if short else 30)


def of_size(size):
    shape, tokens = SETTINGS[size]
    # Training waits for the GPU at no step; where the host is not far ahead of it, waiting would count.
    steps = 1 if size in ("30", "100") else 5
    times = timed(shape, tokens, KINDS, "cuda", 7, steps)
    floor, step = (1e3 * times[kind] / steps for kind in ("floor", "step"))
    idle, longer = unmeasured(lambda: setting(shape, tokens, "cuda"), 31, "cuda")
    what = f"{millions_of(shape)} parameters, {tokens:,} tokens"
    large = size not in ("0.1", "5_2048")
    above, by_hand = memory(shape, tokens)
    return [
        Row(
            f"gpu.measured_{size}",
            f"measured step over its floor, {POINTS} points, {what}",
            times.ratio("measured", "floor"),
            "x",
            {"5": 1.05, "30": 1.02}.get(size),
            note=f"floor {floor:.1f} ms, of which the step {step:.1f} ms; of the host's time, "
            f"{own_parts(shape, tokens)}.",
        ),
        Row(f"gpu.played_{size}", f"the same with cuda_graphs=True, {what}", times.ratio("played", "floor"), "x"),
        Row(
            f"gpu.unmeasured_{size}",
            f"unmeasured step over a step without recorder, {what}",
            idle,
            "x",
            1.01,
            note=f"{1e6 * longer:+.0f} µs.",
        ),
        Row(
            f"gpu.textbook_{size}",
            f"the textbook way over a measured step, {what}",
            times.ratio("textbook", "measured"),
            "x",
            2.0 if size == "0.1" else 1.3 if large else None,
            "at least",
            note=f"cannot exceed {times.ratio('textbook', 'floor'):.2f} where each gradient is launched anew; with "
            f"cuda_graphs=True it is {times.ratio('textbook', 'played'):.2f}.",
        ),
        Row(
            f"gpu.memory_{size}",
            f"peak memory of a measured step above a bare one, {what}",
            above,
            "copies",
            3.15 if large else None,
            note=f"the textbook way: {by_hand:.2f} copies.",
        ),
    ]


def own_parts(shape, tokens):
    """Return in words what the host does besides evaluating gradients."""
    with attached(*setting(shape, tokens, "cuda")) as step:
        step(True)
        torch.cuda.synchronize()
        # One step at a time: the host waits for the GPU where it has launched too much.
        parts = profiled(lambda: (torch.cuda.synchronize(), step(True)), 5)
    return ", ".join(f"{part} {1e3 * seconds:.1f} ms" for part, seconds in parts.items() if part != "gradients")


def memory(shape, tokens):
    """Return the peak of a measured step, and of the textbook way, above a bare one's, in copies of the parameters."""
    mine = setting(shape, tokens, "cuda")
    copies = sum(p.numel() * p.element_size() for p in mine[0].parameters())
    bare = peak_bytes(lambda: train(*mine))
    by_hand = peak_bytes(lambda: textbook(*mine))
    with attached(*mine) as step:
        measured = peak_bytes(lambda: step(True))
    return (measured - bare) / copies, (by_hand - bare) / copies


def peak_bytes(function):
    """Return how much memory a call holds at its peak."""
    function()
    # Models of before, which wait for Python to find their cycles.
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def of_optimizers(millions):
    times = optimizer_steps(millions, 31, "cuda")
    notes = {
        name: f"{1e3 * times[optimizer]:.2f} ms and {1e3 * times[against]:.2f} ms."
        for name, optimizer, against, *_ in compared(times)
    }
    return found_rows(times, f"{millions} M parameters in 107 tensors", "gpu.optimizers_", notes)
