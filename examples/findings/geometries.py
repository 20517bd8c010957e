"""Train the paper's Transformer encoder with four optimizers, and see in which norm each run is smooth.

In this folder:

python geometries.py train adam --lr 1e-3 --data DIR --trace adam.h5   150 steps; every fifth is measured
python geometries.py train adam --lr 1e-3 --data DIR                   the same unmeasured, to choose the lr
python geometries.py table sgd.h5 adam.h5 muon.h5                      what the traces say, norm by norm
python geometries.py figure sgd.h5 adam.h5 muon.h5 -o geometries.png   smoothness against the gradient's dual norm
"""

import itertools
from pathlib import Path

import click
import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import nn

import lsmooth
from lsmooth import tasks
from lsmooth.figures import smoothness_scatter
from lsmooth.optim import GeneralizedSignSGD

NORMS = ("l2", "linf", "spectral")


def made(name: str, model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """The optimizers of a run: Muon steps the matrices of hidden layers, and Adam all else beside it."""
    if name != "muon":
        kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "generalized-signsgd": GeneralizedSignSGD}
        return [kinds[name](model.parameters(), lr=lr)]
    hidden = {n: p for n, p in model.named_parameters() if n.startswith("encoder.") and p.ndim == 2}
    others = [p for n, p in model.named_parameters() if n not in hidden]
    return [torch.optim.Muon(hidden.values(), lr=lr, weight_decay=0.0), torch.optim.Adam(others, lr=1e-3)]


@click.group()
def main() -> None:
    pass


@main.command()
@click.argument("optimizer", type=click.Choice(["sgd", "adam", "generalized-signsgd", "muon"]))
@click.option("--lr", type=float, required=True)
@click.option("--data", help="Folder with WikiText-2; a built-in text by default.")
@click.option("--trace", help="Measure every fifth step, and write this file.")
@click.option("--steps", type=int, default=150, show_default=True)
def train(optimizer: str, lr: float, data: str | None, trace: str | None, steps: int) -> None:
    task = tasks.get("transformer-encoder")
    problem = task.build(task.settings("paper"), task.find_data(data), seed=0)
    model = problem.model
    optimizers = made(optimizer, model, lr)
    recorder = trace and lsmooth.Recorder(
        model, optimizers, trace, every=5, norms=("linf", "spectral"), critical=True, metadata={"optimizer": optimizer}
    )
    losses = []
    for batch in itertools.islice(problem.batches(epoch=0), steps):
        model.zero_grad()
        if recorder:
            loss = recorder.backward(lambda batch=batch: problem.loss(batch, None)[0])
        else:
            loss = problem.loss(batch, None)[0]
            loss.backward()
        losses.append(float(loss.detach()))
        if optimizer == "sgd":  # as in the paper
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for each in optimizers:
            each.step()
    if recorder:
        recorder.close()
    last = losses[-(len(losses) // 5) :]
    print(f"{optimizer}, lr {lr:g}: loss {sum(last) / len(last):.3f} nats a word over the last {len(last)} steps")


@main.command()
@click.argument("traces", nargs=-1, required=True)
def table(traces: tuple[str, ...]) -> None:
    rows = []
    for path in traces:
        with lsmooth.Trace(path) as trace:
            critical = trace.critical_lr()
            for norm in NORMS:
                cloud, steps = trace.smoothness(norm=norm), trace.curvature(norm=norm)
                low, high = cloud["smoothness"].quantile([0.1, 0.9])
                rows.append(
                    {
                        "optimizer": trace.metadata["user_metadata"]["optimizer"],
                        "norm": norm,
                        "steepness": steps["steepness"].median(),
                        "directional / L": (steps["directional"] / cloud["smoothness"]).median(),
                        "L, 90 % over 10 %": high / low,
                        "rank correlation": cloud["smoothness"].corr(cloud["grad_norm"], "spearman"),
                        "edge ratio": steps["edge_ratio"].median(),
                        "critical gamma": critical["critical_gamma"].median(),
                    }
                )
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format))


@main.command()
@click.argument("traces", nargs=-1, required=True)
@click.option("-o", "--output", required=True, help="The picture.")
def figure(traces: tuple[str, ...], output: str) -> None:
    picture, rows = plt.subplots(
        len(traces), len(NORMS), figsize=(8, 2 * len(traces)), layout="constrained", squeeze=False
    )
    for path, row in zip(traces, rows, strict=True):
        for norm, ax in zip(NORMS, row, strict=True):
            smoothness_scatter(path, norm=norm, ax=ax, lines=("trend",), colorbar=False, legend=False)
            ax.set_title(f"{Path(path).stem}, {norm}", fontsize="medium")
            ax.set(xlabel="", ylabel="")
    picture.supxlabel("dual norm of the gradient")
    picture.supylabel("smoothness")
    picture.savefig(output, dpi=150)


if __name__ == "__main__":
    main()
