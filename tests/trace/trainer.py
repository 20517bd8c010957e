"""Training runs to be killed: a parent that has torch imported, and forks a run for each line it is sent.

A line holds a JSON object with the arguments of `run`; the answer is the run's process id, and later its exit code.
"""

import json
import os
import sys
from pathlib import Path

import torch

# What an optimizer's first step imports, and every fork would anew.
import torch._dynamo
from torch import nn

import lsmooth
from lsmooth.measure import handover
from lsmooth.trace.writer import TraceWriter


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 50, 0.9)
    return model, optimizer, scheduler


def everything_of(model):
    """Return the recorder's arguments with which every dataset is there."""
    fixed = [(torch.full((5, 6), 0.3 * i), torch.tensor([0, 1, 2, 0, i])) for i in (1, 2)]
    return {
        "densities": True,
        "critical": True,
        "norms": ["linf", "spectral", {"0": "spectral", "*": "linf"}],
        "blocks": ("module", 2),
        "probe": [lambda x=x, y=y: nn.functional.cross_entropy(model(x), y) for x, y in fixed],
    }


def run(path, steps, *, checkpoint=None, every_checkpoint=10, block_seconds=3.0, told=None, every=1, everything=False):
    """Train `steps` steps in all, from the checkpoint on where there is one.

    Args:
        path: The trace; continued if it is there.
        steps: Optimizer steps of the whole run.
        checkpoint: Where the state is kept.
        every_checkpoint: Steps between two checkpoints.
        block_seconds: How often measured steps are flushed, at least.
        told: A file that gets the number of rows flushed, whenever there are more.
        every: Measure every so many steps.
        everything: Measure all that there is.
    """
    handover.BLOCK_SECONDS = block_seconds
    if told is not None:
        append = TraceWriter.append

        def append_and_tell(self, *arguments):
            append(self, *arguments)
            with open(told, "wb", buffering=0) as file:
                file.write(self.rows.to_bytes(8, "little"))

        TraceWriter.append = append_and_tell
    model, optimizer, scheduler = make()
    mode = "a" if Path(path).exists() else "x"
    measured = everything_of(model) if everything else {}
    with lsmooth.Recorder(model, optimizer, path, mode=mode, every=every, **measured) as recorder:
        first = 0
        if checkpoint is not None and Path(checkpoint).exists():
            state = torch.load(checkpoint)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            scheduler.load_state_dict(state["scheduler"])
            torch.set_rng_state(state["random"])
            recorder.load_state_dict(state["recorder"])
            first = state["step"]
        elif mode == "a":
            recorder.load_state_dict({"step": 0})
        for step in range(first, steps):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(5, 6, generator=generator)
            y = torch.randint(3, (5,), generator=generator)
            optimizer.zero_grad()
            recorder.backward(lambda x=x, y=y: nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            scheduler.step()
            if checkpoint is not None and (step + 1) % every_checkpoint == 0:
                state = {
                    "step": step + 1,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "random": torch.get_rng_state(),
                    "recorder": recorder.state_dict(),
                }
                torch.save(state, f"{checkpoint}.new")
                os.replace(f"{checkpoint}.new", checkpoint)


def serve():
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                run(**json.loads(line))
                code = 0
            finally:
                os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
