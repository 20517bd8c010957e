"""What a step of each optimizer costs, as ratios taken side by side in one run.

    python benchmarks/run.py --only optimizers
    python benchmarks/optimizers.py [--millions 30] [--repeats 61] [--threads 2] [--device cuda] [--cpu-time]

Every round steps every optimizer once, in turn; a ratio is the median over rounds of two times from the same round, so
that what else the machine does weighs on both. The parameters are those of a Transformer encoder of about 30 million
parameters in about 110 tensors; each optimizer has its own copy.
"""

import argparse
import os
import platform
import statistics
import time

import torch
from row import Row, interleaved
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lsmooth import optim

SIGNSGD = "generalized-signsgd"
COMPILED = f"{SIGNSGD}, compiled"
# Those compiled are for the CPU: name in docs/performance.md, optimizer, held against, target, sense
TARGETS = [
    ("signsgd", SIGNSGD, "adam fused", 1.2, "at most"),
    ("loop", "textbook loop", SIGNSGD, 3.5, "at least"),
    ("compiled", COMPILED, "adam fused", 1.2, "at most"),
    ("compiled_loop", "textbook loop", COMPILED, 3.5, "at least"),
    ("foreach", f"{SIGNSGD}, foreach", SIGNSGD, None, "at least"),
    ("clip", "sgd-clip-momentum", "sgd foreach", 1.5, "at most"),
    ("normalized", "sgd-momentum-normalized", "sgd foreach", 1.5, "at most"),
    ("sign", "signsgd", "adam fused", None, "at most"),
]
# On the CPU.
NOTES = {
    "signsgd": "bringing m up to date first reads and writes three arrays more than Adam's seven: 10/7 = 1.43 where "
    "memory is the limit. The cache does not help, since arithmetic bounds Adam's kernel: on one core, 30 M elements "
    "take it 33 ms out of the cache and 34 ms out of memory, and both operations together take 43 ms where nothing "
    "leaves the cache, 1.25 at best. In blocks of 2^14 to 2^19 elements, with m or a reused buffer as the kernel's "
    "first moment, a step took as long as without, or longer.",
    "loop": "it is the allocator that decides: where it keeps the memory of the loop's temporaries, the loop takes 2 "
    "to 3 x as long as Adam's kernel; where it gives them back, some 10,000 page faults a step make that 5 x and more.",
    "compiled": "compile=True: one pass over Adam's seven arrays. On one tensor of 30 M elements a step takes as long "
    "as Adam's; on many, the rest is calls from Python, one for every four of a size.",
    "compiled_loop": "as above.",
    "clip": "the norm is one more pass over the momentum.",
    "sign": "eps = 0: signs, without a second moment.",
}


def parameters(millions, device):
    """Random parameters, with gradients, in the shapes of a Transformer encoder with 8 layers."""
    torch.manual_seed(0)
    width = max(8, int((millions * 1e6 / (12 * 8 + 2 * 10)) ** 0.5) // 8 * 8)
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width)
    modules = nn.ModuleList(
        [
            nn.Embedding(10 * width, width),
            nn.TransformerEncoder(layer, 8, enable_nested_tensor=False),
            *(nn.LayerNorm(width) for _ in range(4)),
            nn.Linear(width, 10 * width),
        ]
    )
    params = [nn.Parameter(p.detach().to(device)) for p in modules.parameters()]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    return params


class Textbook(torch.optim.Optimizer):
    """Algorithm 1 as one writes it down: an operation after the other, for each tensor."""

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["m"], state["v"] = torch.zeros_like(p), torch.zeros_like(p)
                m, v = state["m"], state["v"]
                m.lerp_(p.grad, 1 - beta1)
                v.mul_(beta2).addcmul_(m, m, value=1 - beta2)
                p.addcdiv_(m, v.sqrt() + group["eps"], value=-group["lr"])


def contenders(millions, device):
    def made(build):
        return build(parameters(millions, device))

    lr = 1e-4
    signsgd = optim.GeneralizedSignSGD
    compiled = {COMPILED: made(lambda p: signsgd(p, lr=lr, compile=True))} if device == "cpu" else {}
    return {
        "adam fused": made(lambda p: torch.optim.Adam(p, lr=lr, fused=True)),
        "adam foreach": made(lambda p: torch.optim.Adam(p, lr=lr, foreach=True)),
        SIGNSGD: made(lambda p: signsgd(p, lr=lr)),
        **compiled,
        f"{SIGNSGD}, foreach": made(lambda p: signsgd(p, lr=lr, foreach=True)),
        f"{SIGNSGD}, single": made(lambda p: signsgd(p, lr=lr, foreach=False, fused=False)),
        "textbook loop": made(lambda p: Textbook(p, lr=lr)),
        f"{SIGNSGD}, eps=0": made(lambda p: signsgd(p, lr=lr, eps=0.0)),
        f"{SIGNSGD}, L2": made(lambda p: signsgd(p, lr=lr, weight_decay=0.1)),
        "signsgd": made(lambda p: optim.build("signsgd", p, lr=lr)),
        "sgd foreach": made(lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9, foreach=True)),
        "sgd-clip-grad": made(lambda p: optim.build("sgd-clip-grad", p, lr=lr)),
        "sgd-clip-momentum": made(lambda p: optim.build("sgd-clip-momentum", p, lr=lr)),
        "sgd-momentum-normalized": made(lambda p: optim.build("sgd-momentum-normalized", p, lr=lr)),
    }


def timed(millions, repeats, device="cpu", cpu_time=False):
    """Time each optimizer's step."""
    return interleaved(
        {name: optimizer.step for name, optimizer in contenders(millions, device).items()},
        repeats,
        torch.cuda.synchronize if device.startswith("cuda") else lambda: None,
        time.process_time if cpu_time else time.perf_counter,
    )


def compared(times):
    """Return those of TARGETS whose optimizers were timed."""
    return [target for target in TARGETS if {target[1], target[2]} <= times.rounds.keys()]


def found_rows(times, size, prefix="optimizers.", notes=NOTES):
    """Return what the times say of the targets, with what there is to say of each."""
    return [
        Row(
            f"{prefix}{name}",
            f"a step of {optimizer} over one of {against}, {size}",
            times.ratio(optimizer, against),
            "x",
            target,
            sense,
            notes.get(name, ""),
        )
        for name, optimizer, against, target, sense in compared(times)
    ]


class Operations(TorchDispatchMode):
    """Counts the operations that are dispatched: on a GPU each launches one kernel or, for many tensors, a few."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.namespace == "aten"
        return func(*args, **(kwargs or {}))


# Name in docs/performance.md, optimizer, most operations that a step may have.
OPERATIONS = [
    ("sgd_operations", "sgd foreach", None),
    ("clip_operations", "sgd-clip-momentum", 9),
    ("normalized_operations", "sgd-momentum-normalized", 9),
    ("adam_operations", "adam fused", None),
    ("signsgd_operations", SIGNSGD, 3),
]


def operations():
    """Return how many operations each optimizer of OPERATIONS dispatches a step: CPU and CUDA dispatch the same."""
    found = {}
    made = contenders(0.1, "cpu")
    for _, name, _ in OPERATIONS:
        # The first step makes the state.
        made[name].step()
        with Operations() as counted:
            made[name].step()
        found[name] = counted.count
    return found


def operation_rows():
    found = operations()
    return [
        Row(f"optimizers.{name}", f"what a step of {optimizer} dispatches", found[optimizer], "operations", most)
        for name, optimizer, most in OPERATIONS
    ]


def rows(short):
    millions = 3 if short else 30
    times = timed(millions, 7 if short else 61)
    return [*found_rows(times, f"{millions} M parameters in 107 tensors"), *operation_rows()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=30, help="parameters, in millions")
    parser.add_argument("--repeats", type=int, default=61, help="rounds that count")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="threads that torch may use; all by default")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count this process's CPU time: for one thread on a busy machine"
    )
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    params = parameters(arguments.millions, arguments.device)
    size = f"{sum(p.numel() for p in params) / 1e6:.1f} M parameters in {len(params)} tensors"
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{arguments.device}, load {os.getloadavg()[0]:.1f}; {size}, float32"
    )
    del params
    times = timed(arguments.millions, arguments.repeats, arguments.device, arguments.cpu_time)
    print(f"{'':<30}{'median ms':>10}{'least ms':>10}{'/ adam fused':>14}{'/ sgd foreach':>14}")
    for name, taken in times.rounds.items():
        columns = "".join(f"{times.ratio(name, against):>14.2f}" for against in ("adam fused", "sgd foreach"))
        print(f"{name:<30}{statistics.median(taken) * 1e3:>10.1f}{min(taken) * 1e3:>10.1f}{columns}")
    for row in [*found_rows(times, size), *operation_rows()]:
        if row.target is not None:
            print(f"{row.what}: {row.value:.2f}, {row.sense} {row.target}: {'met' if row.met() else 'missed'}")


if __name__ == "__main__":
    main()
