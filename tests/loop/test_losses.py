"""Where the loss is in what a call returned."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch

from lsmooth.errors import RecorderError
from lsmooth.loop.losses import loss_in

LOSS = torch.tensor(2.0, requires_grad=True)
OTHER = torch.tensor(3.0, requires_grad=True)
LOGITS = torch.ones(4, 2, requires_grad=True)
NUMBER = torch.tensor(5.0)


@dataclass
class Output:
    logits: torch.Tensor
    objective: torch.Tensor


@dataclass
class Named:
    aux: torch.Tensor
    loss: torch.Tensor


Both = namedtuple("Both", ["logits", "objective"])


@pytest.mark.parametrize(
    "returned",
    [
        LOSS,
        (LOSS, OTHER),
        (LOGITS, LOSS),
        [NUMBER, LOGITS, LOSS],
        {"loss": LOSS, "aux": OTHER},
        {"logits": LOGITS, "objective": LOSS, "accuracy": NUMBER},
        {"loss": None, "nll": LOSS},
        Output(LOGITS, LOSS),
        Named(OTHER, LOSS),
        Both(LOGITS, LOSS),
        (LOGITS, {"losses": [LOSS]}, "text", 7),
        (LOGITS, LOSS, LOSS),
        (torch.ones(1, 1, requires_grad=True)[None], LOSS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_loss_is_found(returned):
    if isinstance(returned, tuple) and returned[0].shape == (1, 1, 1):
        returned = (LOGITS, *returned[1:])
    assert loss_in(returned) is LOSS


@pytest.mark.parametrize("returned", [None, NUMBER, LOGITS, (LOGITS, NUMBER), {"logits": LOGITS}, "loss", 3.0])
def test_there_is_none(returned):
    assert loss_in(returned) is None


@pytest.mark.parametrize("returned", [(LOGITS, LOSS, OTHER), {"box": LOSS, "mask": OTHER}, Output(OTHER, LOSS)])
def test_of_several_one_is_chosen(returned):
    with pytest.raises(RecorderError, match=r"holds 2 scalars with a gradient, .* say it with loss=lambda returned"):
        loss_in(returned)
    assert loss_in(returned, lambda _: LOSS) is LOSS
    assert loss_in(returned, lambda _: NUMBER) is None


def test_a_choice_that_computes_a_loss_is_refused():
    logits = torch.ones(4, 2, requires_grad=True)
    returned = {"class": logits.mean(), "box": logits.square().sum()}
    assert loss_in(returned, lambda losses: losses["box"]) is returned["box"]
    with pytest.raises(RecorderError, match="loss= has computed a new tensor"):
        loss_in(returned, lambda losses: sum(losses.values()))
    with pytest.raises(RecorderError, match="loss= has computed a new tensor"):
        loss_in(returned, lambda losses: losses["box"] / 2)


def test_losses_that_the_loop_reduces_are_one_where_that_is_allowed():
    assert loss_in(LOGITS) is None
    assert loss_in(LOGITS, entries=True) is LOGITS
    assert loss_in(LOGITS.detach(), entries=True) is None
    assert loss_in((LOGITS, LOSS), entries=True) is LOSS
