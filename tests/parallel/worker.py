"""Training runs that one process makes with the whole batch, or several with a part each; run by torchrun.

`torchrun --nproc-per-node N worker.py FOLDER CASE…` writes FOLDER/CASE.N.h5, and what each rank saw.
"""

import collections
import contextlib
import copy
import gc
import json
import optparse
import os
import resource
import signal
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import lsmooth
from lsmooth.tasks.parallel import leave

STEPS, BATCH = 6, 16


class Net(nn.Module):
    """No layer's size is a multiple of the number of ranks; the last bias is shorter than four."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh())
        self.head = nn.Linear(9, 3)

    def forward(self, x, y=None):
        logits = self.head(self.inner(x))
        if y is None:
            return logits
        return {"loss": nn.functional.cross_entropy(logits, y), "logits": logits}


class Noisy(Net):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Dropout(0.3), nn.Tanh())


class Exact(Net):
    """In float64, for what is found by comparing losses."""

    def __init__(self):
        super().__init__()
        self.double()

    def forward(self, x, y=None):
        return super().forward(x.double(), y)


def rank_and_size():
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def data(step, part=0):
    """This rank's share of a batch that is the same whatever the number of ranks."""
    rank, size = rank_and_size()
    generator = torch.Generator().manual_seed(100 * step + part)
    x, y = torch.randn(BATCH, 6, generator=generator), torch.randint(3, (BATCH,), generator=generator)
    return x.chunk(size)[rank], y.chunk(size)[rank]


def build(wrap, make=Net):
    torch.manual_seed(0)
    model = make()
    rank, size = rank_and_size()
    if size == 1 or wrap == "none":
        return model
    torch.manual_seed(1000 + rank)
    if wrap == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for layer in (model.inner, model.head):
            fully_shard(layer)
        fully_shard(model)
        return model
    if wrap == "fsdp-mixed":
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        fully_shard(model.inner, mp_policy=policy)
        # Its parameters stay gathered between forward and backward.
        fully_shard(model.head, mp_policy=policy, reshard_after_forward=False)
        return fully_shard(model, mp_policy=policy)
    if wrap == "hsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        return fully_shard(model, mesh=init_device_mesh("cpu", (2, size // 2), mesh_dim_names=("copy", "shard")))
    if wrap.startswith("fsdp-compiled"):
        model = build("fsdp", make)
        model.compile(backend=wrap.split(":")[1])
        return model
    ddp = nn.parallel.DistributedDataParallel(
        model,
        gradient_as_bucket_view=wrap == "ddp-view",
        static_graph=wrap == "ddp-static",
        find_unused_parameters=wrap == "ddp-unused",
    )
    return torch.compile(ddp, backend=wrap.split(":")[1]) if wrap.startswith("ddp-compiled") else ddp


def optimizer_for(model):
    return torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.9, weight_decay=0.01)


def adam_for(model):
    return torch.optim.AdamW(model.parameters(), lr=0.05)


class Pair:
    """Two optimizers, the second of which steps every second time."""

    def __init__(self, model):
        matrices = [p for p in model.parameters() if p.ndim == 2]
        others = [p for p in model.parameters() if p.ndim != 2]
        self.optimizers = [torch.optim.SGD(matrices, lr=0.4, momentum=0.9), torch.optim.AdamW(others, lr=0.05)]
        self.steps = 0

    @property
    def state(self):
        return {p: entry for optimizer in self.optimizers for p, entry in optimizer.state.items()}

    def zero_grad(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self):
        self.steps += 1
        for optimizer in self.optimizers[: 1 + self.steps % 2]:
            optimizer.step()


def loop(model, optimizer, recorder=None, how="closure", parts=1, *, deferred=False, steps=range(STEPS)):
    """Train, with accumulation in `parts` and gradient clipping."""
    ddp = isinstance(model, nn.parallel.DistributedDataParallel)
    for step in steps:
        optimizer.zero_grad()
        for part in range(parts):
            x, y = data(step, part)
            if deferred and rank_and_size()[1] > 1:
                model.set_requires_gradient_sync(part == parts - 1)
            with model.no_sync() if ddp and part < parts - 1 else contextlib.nullcontext():
                if recorder is None or how == "watch":
                    (model(x, y)["loss"] / parts).backward()
                else:
                    recorder.backward(lambda x=x, y=y: model(x, y)["loss"] / parts)
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()


def state(model, optimizer):
    """Parameters, gradients and optimizer state of this rank."""

    def mine(tensor):
        return tensor.to_local().clone() if hasattr(tensor, "to_local") else tensor.detach().clone()

    found = {f"value.{name}": mine(p.detach()) for name, p in model.named_parameters()}
    found |= {f"grad.{name}": mine(p.grad) for name, p in model.named_parameters()}
    found |= {f"buffer.{name}": b.clone() for name, b in model.named_buffers()}
    for i, entry in enumerate(optimizer.state.values()):
        found |= {f"optimizer.{i}.{key}": mine(value) for key, value in entry.items() if torch.is_tensor(value)}
    return found | {"rng": torch.get_rng_state()}


def run(path, wrap, make=Net, make_optimizer=optimizer_for, *, how="closure", parts=1, deferred=False, **arguments):
    """Train once without and once with a recorder; say whether anything differs."""
    model = build(wrap, make)
    optimizer = make_optimizer(model)
    loop(model, optimizer, parts=parts, deferred=deferred)
    bare = state(model, optimizer)
    model = build(wrap, make)
    optimizer = make_optimizer(model)
    with lsmooth.Recorder(model, optimizer, path, **arguments) as recorder:
        if how == "watch":
            recorder.watch_forward()
        loop(model, optimizer, recorder, how, parts, deferred=deferred)
    watched = state(model, optimizer)
    assert bare.keys() == watched.keys()
    return {"changed": [name for name in bare if not torch.equal(bare[name], watched[name])]}


def as_if_large(path, *arguments, **options):
    """Do what `run` does, gradients being taken in many buckets as they arrive, as those of large models are."""
    with (
        mock.patch("lsmooth.replay.evaluation.taken_whole", return_value=False),
        mock.patch("lsmooth.replay.evaluation.BUCKET_LEAST_BYTES", 1),
    ):
        return run(path, *arguments, **options)


def resumed(path, wrap):
    """Stop after three steps, and go on one step earlier from a checkpoint of rank 0's."""
    model = build(wrap)
    optimizer = optimizer_for(model)
    recorder = lsmooth.Recorder(model, optimizer, path)
    loop(model, optimizer, recorder, steps=range(2))
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    box = [recorder.state_dict() if rank_and_size()[0] == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(box)
    loop(model, optimizer, recorder, steps=range(2, 3))
    recorder.close()
    model.load_state_dict(kept[0])
    optimizer.load_state_dict(kept[1])
    with lsmooth.Recorder(model, optimizer, path, mode="a") as recorder:
        began = recorder.step
        recorder.load_state_dict(box[0])
        loop(model, optimizer, recorder, steps=range(2, STEPS))
    return {"began": began, "changed": []}


def probes(path, wrap):
    model = build(wrap)
    optimizer = adam_for(model)
    fixed = [data(50 + i) for i in range(3)]
    probe = [lambda x=x, y=y: model(x, y)["loss"] for x, y in fixed]
    with lsmooth.Recorder(model, optimizer, path, probe=probe, norms=("linf", {"head": "l2", "*": "linf"})):
        loop(model, optimizer)
    return {}


def deep(layers, width):
    """Many layers, so that no tensor is a large part of the whole."""
    return nn.Sequential(*[layer for _ in range(layers) for layer in (nn.Linear(width, width), nn.Tanh())])


def peak_resident_bytes(function):
    """Return by how much a call raises the process's memory at its peak, as Linux counts it.

    Torch's profiler does not see what gloo's threads free.
    """

    def status(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def memory(path, wrap, parts=1, layers=20, width=512):
    """Return the peak of a measured step above that of a step without recorder, in copies of this rank's parameters.

    The batch is small against the model.
    """
    model = build("none", lambda: deep(layers, width))
    if wrap == "fsdp":
        from torch.distributed.fsdp import fully_shard

        for layer in model:
            fully_shard(layer)
        fully_shard(model)
    else:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = optimizer_for(model)
    x = torch.randn(2, width)
    mine = [p.to_local() if wrap == "fsdp" else p for p in model.parameters()]
    size = sum(p.numel() * p.element_size() for p in mine)

    def compute_loss():
        return model(x).square().mean()

    def step(recorder=None):
        optimizer.zero_grad()
        for part in range(parts):
            with model.no_sync() if part < parts - 1 else contextlib.nullcontext():
                if recorder is None:
                    compute_loss().backward()
                else:
                    recorder.backward(compute_loss)
        optimizer.step()

    def two_steps(recorder=None):
        step(recorder)
        step(recorder)

    two_steps()
    bare = peak_resident_bytes(two_steps)
    # From before the first measured step: what it allocates stays.
    with lsmooth.Recorder(model, optimizer, path) as recorder:
        measured = peak_resident_bytes(lambda: two_steps(recorder))
    return {"copies": (measured - bare) / size, "bare": bare / size}


class Collectives(TorchDispatchMode):
    """Counts calls into torch.distributed, and how many numbers the all-reduces join."""

    def __init__(self):
        super().__init__()
        # Replays put back what a mode counts.
        self._seen = optparse.Values({"calls": collections.Counter(), "reduced": []})

    @property
    def calls(self):
        return self._seen.calls

    @property
    def reduced(self):
        return self._seen.reduced

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            self.calls[func.overloadpacket.__name__] += 1
            if func.overloadpacket.__name__ == "allreduce_":
                self.reduced.append(sum(tensor.numel() for tensor in args[0]))
        return func(*args, **(kwargs or {}))


def communication(path, wrap, **arguments):
    """Count the collectives of a step without and of a step with measurement."""
    model = build(wrap)
    optimizer = optimizer_for(model)
    seen = []
    with lsmooth.Recorder(model, optimizer, path, every=2, coordinates=1, **arguments) as recorder:
        for step in range(4):
            x, y = data(step)
            optimizer.zero_grad()
            with Collectives() as collectives:
                recorder.backward(lambda x=x, y=y: model(x, y)["loss"])
                optimizer.step()
            seen.append({"calls": collectives.calls, "reduced": collectives.reduced})
    return {"steps": seen}


def unwritable(path, wrap):
    """Rank 0 cannot write the trace from the start: what every rank is told, evaluates and communicates."""
    model = build(wrap)
    optimizer = optimizer_for(model)
    with Collectives() as bare:
        loop(model, optimizer)
    expected = state(model, optimizer)
    model = build(wrap)
    optimizer = optimizer_for(model)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank_and_size()[0] == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with warnings.catch_warnings(record=True) as caught, lsmooth.Recorder(model, optimizer, path) as recorder:
            with Collectives() as watched:
                loop(model, optimizer, recorder)
            kept = recorder.state_dict()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = state(model, optimizer)
    return {
        "changed": [name for name in expected if not torch.equal(expected[name], found[name])],
        "failure": recorder.failure,
        "told": [str(warning.message) for warning in caught],
        "calls": [bare.calls, watched.calls],
        "kept": [kept["step"], kept["rows"]],
    }


def attempts(path):
    """Return a function that tries to make a recorder, and what it was told, by name."""
    said = {}

    def attempt(name, make, trained=lambda model: model, **arguments):
        try:
            model = make()
            lsmooth.Recorder(model, optimizer_for(trained(model)), f"{path}.{name}", **arguments).close()
            said[name] = None
        except lsmooth.LsmoothError as error:
            said[name] = str(error)

    return attempt, said


def refusals(path, wrap):
    """What cannot be measured, and what is said about it, on every rank."""
    attempt, said = attempts(path)
    attempt("unwrapped", Net)
    Path(f"{path}.exists").touch()
    dist.barrier()
    attempt("exists", lambda: build("ddp"))
    attempt("disagree", lambda: build("ddp"), every=1 + rank_and_size()[0])
    attempt("densities", lambda: build("fsdp"), densities=True)
    attempt("spectral", lambda: build("fsdp"), norms=("l2", "linf", "spectral"))

    def hooked():
        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

        model = build("ddp")
        hook_state = powerSGD_hook.PowerSGDState(None)
        model.register_comm_hook(hook_state, powerSGD_hook.powerSGD_hook)
        return model

    attempt("hooked", hooked)

    def partly():
        from torch.distributed.fsdp import fully_shard

        model = Net()
        fully_shard(model.head)
        return model

    attempt("partly", partly)

    def tensor_parallel(model=Net):
        from torch.distributed.tensor import parallel

        plan = {"inner.0": parallel.ColwiseParallel(), "inner.2": parallel.RowwiseParallel()}
        return parallel.parallelize_module(model(), dist.init_device_mesh("cpu", (rank_and_size()[1],)), plan)

    attempt("tensor-parallel", tensor_parallel)
    attempt("pipeline", lambda: [Net().inner, Net().head][rank_and_size()[0]])
    attempt("other-parameters", lambda: build("ddp"), lambda model: [model, model.module.head][rank_and_size()[0]])

    def uneven():
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import DTensor, Shard

        model = fully_shard(nn.Linear(3, 5))
        mesh, rows = model.weight.device_mesh, [1, 4][rank_and_size()[0]]
        odd = DTensor.from_local(torch.zeros(rows, 3), mesh, [Shard(0)], shape=(5, 3), stride=(3, 1))
        model.weight = nn.Parameter(odd)
        return model

    attempt("uneven", uneven)
    return {"said": said}


def mesh_refusals(path, wrap):
    """The same of four ranks in a mesh of two by two."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import parallel

    attempt, said = attempts(path)
    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def tensor_parallel(style):
        model = nn.Sequential(nn.Linear(6, 8, bias=False))
        return fully_shard(parallel.parallelize_module(model, mesh["tensor"], {"0": style}), mesh=mesh["data"])

    attempt("column", lambda: tensor_parallel(parallel.ColwiseParallel()))
    attempt("row", lambda: tensor_parallel(parallel.RowwiseParallel()))
    attempt("submesh", lambda: fully_shard(Net(), mesh=mesh["data"]))

    def two_meshes():
        model = Net()
        fully_shard(model.head, mesh=mesh)
        return fully_shard(model)

    attempt("two-meshes", two_meshes)
    group = mesh["data"].get_group()
    attempt("subgroup", lambda: nn.parallel.DistributedDataParallel(Net(), process_group=group))
    return {"said": said}


# Where evaluations are counted: of what the standard library's objects hold, replays put nothing back.
CALLS = optparse.Values({"made": 0})


def dies(path, wrap):
    """The last rank is killed in its fourth step, half-way through a measurement."""
    rank, size = rank_and_size()
    model = build(wrap)
    optimizer = optimizer_for(model)
    with lsmooth.Recorder(model, optimizer, path) as recorder:
        for step in range(100):
            x, y = data(step)
            CALLS.made = 0

            def closure(x=x, y=y, step=step):
                CALLS.made += 1
                if rank == size - 1 and step == 3 and CALLS.made == 4:
                    os.kill(os.getpid(), signal.SIGKILL)
                return model(x, y)["loss"]

            optimizer.zero_grad()
            recorder.backward(closure)
            optimizer.step()
            recorder.flush()
            time.sleep(0.01)
    return {}


CASES = {
    "ddp": lambda path: run(path, "ddp"),
    "ddp-view-adam": lambda path: run(path, "ddp-view", make_optimizer=adam_for),
    "ddp-accumulated": lambda path: run(path, "ddp", parts=3),
    "ddp-watched": lambda path: run(path, "ddp-view", how="watch", parts=2),
    "ddp-several": lambda path: run(path, "ddp", make_optimizer=Pair),
    "ddp-several-watched": lambda path: run(path, "ddp-view", make_optimizer=Pair, how="watch", parts=2),
    "fsdp-several": lambda path: run(path, "fsdp", make_optimizer=Pair),
    "fsdp-several-watched": lambda path: run(path, "fsdp", make_optimizer=Pair, how="watch"),
    "ddp-noisy": lambda path: as_if_large(path, "ddp-unused", Noisy, how="watch"),
    "ddp-large": lambda path: as_if_large(path, "ddp", norms=("l2", "linf")),
    "ddp-large-accumulated": lambda path: as_if_large(path, "ddp", parts=3),
    "ddp-large-watched": lambda path: as_if_large(path, "ddp-view", make_optimizer=adam_for, how="watch"),
    "ddp-large-compiled": lambda path: as_if_large(path, "ddp-compiled:aot_eager"),
    "ddp-large-uneven": lambda path: as_if_large(path, "ddp", parts=1 + rank_and_size()[0]),
    "ddp-large-noisy": lambda path: as_if_large(path, "ddp", Noisy),
    "fsdp": lambda path: run(path, "fsdp"),
    "fsdp-large": lambda path: as_if_large(path, "fsdp", norms=("l2", "linf")),
    "fsdp-large-watched": lambda path: as_if_large(path, "fsdp", how="watch", parts=2),
    "fsdp-large-deferred": lambda path: as_if_large(path, "fsdp", parts=3, deferred=True),
    "hsdp-large": lambda path: as_if_large(path, "hsdp"),
    "fsdp-adam": lambda path: run(path, "fsdp", make_optimizer=adam_for, gammas=[0.5, 1.0]),
    "fsdp-watched": lambda path: run(path, "fsdp", how="watch", parts=2),
    "fsdp-noisy": lambda path: run(path, "fsdp", Noisy),
    "ddp-static": lambda path: as_if_large(path, "ddp-static", how="watch"),
    "fsdp-mixed": lambda path: run(path, "fsdp-mixed", how="watch"),
    "hsdp": lambda path: run(path, "hsdp"),
    "fsdp-deferred": lambda path: run(path, "fsdp", parts=3, deferred=True),
    "ddp-resumed": lambda path: resumed(path, "ddp"),
    "ddp-probes": lambda path: probes(path, "ddp"),
    "fsdp-probes": lambda path: probes(path, "fsdp"),
    "ddp-exact": lambda path: run(path, "ddp", Exact, critical=True, blocks=2, norms={"head": "spectral", "*": "linf"}),
    "fsdp-exact": lambda path: run(
        path, "fsdp", Exact, adam_for, critical=True, blocks=2, norms={"head": "l2", "*": "linf"}, parts=2
    ),
    "ddp-compiled": lambda path: run(path, "ddp-compiled:aot_eager"),
    "fsdp-compiled": lambda path: run(path, "fsdp-compiled:aot_eager"),
    "ddp-inductor": lambda path: run(path, "ddp-compiled:inductor", how="watch"),
    "fsdp-inductor": lambda path: run(path, "fsdp-compiled:inductor"),
    "ddp-memory": lambda path: memory(path, "ddp"),
    "ddp-accumulated-memory": lambda path: memory(path, "ddp", parts=3),
    "fsdp-memory": lambda path: memory(path, "fsdp"),
    "ddp-large-memory": lambda path: memory(path, "ddp", layers=60, width=1024),
    "fsdp-large-memory": lambda path: memory(path, "fsdp", layers=60, width=1024),
    "ddp-communication": lambda path: communication(path, "ddp"),
    "fsdp-communication": lambda path: communication(path, "fsdp"),
    "linf-communication": lambda path: communication(path, "fsdp", norms=("l2", "linf")),
    "fsdp-linf": lambda path: run(path, "fsdp", norms=("l2", "linf")),
    "hsdp-linf": lambda path: run(path, "hsdp", norms=("l2", "linf")),
    "ddp-norms": lambda path: run(path, "ddp", norms=("l2", "linf", "spectral"), densities=True),
    "ddp-unwritable": lambda path: unwritable(path, "ddp"),
    "fsdp-unwritable": lambda path: unwritable(path, "fsdp"),
    "refusals": lambda path: refusals(path, "ddp"),
    "mesh-refusals": lambda path: mesh_refusals(path, "fsdp"),
    "ddp-dies": lambda path: dies(path, "ddp"),
}


if __name__ == "__main__":
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = rank_and_size()
    for case in cases:
        result = CASES[case](folder / f"{case}.{size}.h5")
        (folder / f"{case}.{size}.rank{rank}.json").write_text(json.dumps(result))
    leave()
