"""Ranks seen from a process that is alone; `test_distributed.py` has several."""

import pytest
import torch
from torch import nn

from lsmooth.errors import TraceError
from lsmooth.parallel.ranks import Ranks, SilentWriter, unwrapped


def alone():
    model = nn.Linear(2, 1)
    return Ranks(model, ["weight", "bias"], list(model.parameters()))


def test_who_is_alone_asks_nobody():
    ranks = alone()
    assert ranks.alone
    assert (ranks.rank, ranks.size, ranks.sharded) == (0, 1, False)
    assert ranks.agree(lambda: "opened", gammas=(0.5,)) == "opened"
    assert ranks.from_rank_0(3) == 3
    numbers = torch.arange(3.0)
    ranks.prepare({}, {}, numbers.device)
    ranks.join(numbers)
    assert numbers.tolist() == [0.0, 1.0, 2.0]


def test_what_cannot_be_opened_is_raised_as_it_is():
    def refused():
        raise TraceError("there is no folder")

    with pytest.raises(TraceError, match="there is no folder"):
        alone().agree(refused)


def test_wrappers_are_taken_off():
    model = nn.Linear(2, 1)
    assert unwrapped(model) is model
    assert unwrapped(torch.compile(model)) is model


def test_a_silent_writer_writes_nothing_and_says_why():
    writer = SilentWriter("the disk is full")
    writer.put(object(), 3, [1])
    writer.wait()
    writer.close(4)
    assert writer.failure == "the disk is full"
    assert writer.problems() == []
