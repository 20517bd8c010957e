"""Probes of a training run: fixed training examples whose mean loss is measured in place of each step's batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lsmooth.errors import InvalidArgumentError
from lsmooth.tasks.training import TrainingRun


def probes_of(run: TrainingRun, count: int, size: int) -> list[Callable[[], Any]]:
    """Return closures that compute the training loss of `count` training examples, `size` of them each.

    The run's seed decides which examples, none of them twice. A recurrent model begins each probe without a state.

    Args:
        run: The run. Its tasks say what an example is: a pair, a window of text, an image.
        count: Examples of all probes together.
        size: Examples of one probe.

    Raises:
        InvalidArgumentError: There are not so many examples, or `count` is no multiple of `size`.
    """
    problem = run.problem
    if count > problem.examples:
        raise InvalidArgumentError(
            f"There are {problem.examples:,} training examples, too few for probes of {count:,}; give a smaller count."
        )
    if count % size:
        raise InvalidArgumentError(
            f"{count} examples cannot be cut into probes of {size}; give a multiple of {size}, such as "
            f"{max(1, round(count / size)) * size}, or another probe size."
        )
    # Epochs draw from (seed, epoch); a seed of three numbers gives other draws than any of theirs.
    rng = np.random.default_rng((problem.seed, 0, 1))
    which = torch.from_numpy(rng.choice(problem.examples, count, replace=False))
    return [run.loss_on(problem.drawn(part, rng), None) for part in which.split(size)]
