"""Train the paper's translation model, and see whether smoothness still grows with the gradient near x_t.

In this folder:

python short_segments.py train --data DIR --trace short.h5   1,000 steps; every tenth is measured
python short_segments.py train --gelu --trace smooth.h5      the same with GELU for ReLU, whose derivative jumps
python short_segments.py table short.h5                      what the trace says, gamma by gamma

Over a whole step, the gradient changes by about as much as it is. At a hundredth of the step it hardly changes.
"""

import click
import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from torch import nn

import lsmooth
from lsmooth.tasks.plan import make_plan
from lsmooth.trace.layout import Status

GAMMAS = (0.01, 0.03, 0.1, 0.3, 5 / 6)


@click.group()
def main() -> None:
    pass


@main.command()
@click.option("--data", help="Folder with Multi30k; generated sentences by default.")
@click.option("--trace", required=True, help="The trace to write.")
@click.option("--steps", type=int, default=1000, show_default=True)
@click.option("--gelu", is_flag=True, help="Give the feed-forward layers GELU in place of ReLU.")
def train(data: str | None, trace: str, steps: int, gelu: bool) -> None:
    plan, found = make_plan("transformer-translation", data=data, preset="small", changes={"steps": steps})
    run = plan.start(found)
    for module in run.model.modules():
        if gelu and isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            module.activation = nn.functional.gelu
    with lsmooth.Recorder(run.model, run.optimizer, trace, every=10, gammas=GAMMAS, coordinates=8) as recorder:
        for step in run.steps(recorder):
            if step % 100 == 0:
                print(f"step {step}: loss {float(run.loss):.4g}", flush=True)


@main.command()
@click.argument("path")
@click.option("--after", type=int, default=100, show_default=True, help="Leave out the steps before this one.")
def table(path: str, after: int) -> None:
    with lsmooth.Trace(path) as trace:
        kept = (trace.read("status") == Status.MEASURED) & (trace.read("step") >= after)
        change = np.linalg.norm(trace.read("grad_diff")[kept], axis=-1)
        step, gradient = (np.linalg.norm(trace.read(name)[kept], axis=-1) for name in ("step_norm", "grad_norm"))
        first, moved = (trace.read(f"coordinate/{name}")[kept] for name in ("grad", "displacement"))
        changes = np.abs(trace.read("coordinate/grad_along")[kept] - first[:, None])
        gammas = trace.gammas
    rows = []
    for point, gamma in enumerate(gammas):
        smoothness = change[:, point] / (gamma * step)
        with np.errstate(divide="ignore", invalid="ignore"):
            single = changes[:, point] / (gamma * np.abs(moved))
        rows.append(
            {
                "gamma": gamma,
                "change / gradient": np.median(change[:, point] / gradient),
                "median of L": np.median(smoothness),
                "rank correlation": spearmanr(gradient, smoothness).statistic,
                "power of the norm": np.polyfit(np.log(gradient), np.log(smoothness), 1)[0],
                "rank correlation, coordinates": median_correlation(np.abs(first), single),
            }
        )
    print(f"{kept.sum()} measured steps")
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format))


def median_correlation(gradients: np.ndarray, smoothness: np.ndarray) -> float:
    """The median of the rank correlations of coordinates, (T, coordinates) both; of those that move at most steps."""
    found = []
    for x, y in zip(gradients.T, smoothness.T, strict=True):
        good = np.isfinite(y) & (y > 0) & (x > 0)
        if good.sum() > len(x) / 2:
            found.append(spearmanr(x[good], y[good]).statistic)
    return float(np.median(found))


if __name__ == "__main__":
    main()
