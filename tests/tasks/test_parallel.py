"""One process's part of a batch: the mean of the parts' weighted losses is the loss of the whole."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from lsmooth import tasks
from lsmooth.errors import InvalidArgumentError
from lsmooth.tasks import parallel
from lsmooth.tasks.parallel import part_of

SMALL = {
    "transformer-encoder": {"embedding": 16, "feed_forward": 16, "batch_size": 7},
    "transformer-translation": {"width": 16, "feed_forward": 16, "layers": 1, "batch_size": 7},
    "gpt2": {"width": 20, "feed_forward": 16, "layers": 1, "context": 16, "batch_size": 7},
    "resnet20": {"width": 4, "batch_size": 7},
    "awd-lstm": {"hidden": 16, "embedding": 16, "batch_size": 7},
}


@pytest.mark.parametrize("name", tasks.NAMES)
@pytest.mark.parametrize("size", [3, 9])
def test_the_mean_over_ranks_is_the_loss_of_the_whole_batch(name, size):
    if name == "gpt2":
        pytest.importorskip("transformers")
    task = tasks.get(name)
    problem = task.build(task.settings("small").replaced(SMALL[name]), task.find_data(None), seed=0)
    # Without dropout, and with batch norm's kept statistics: those of a part of the batch are others.
    problem.model.eval()
    for batch in (batch for batch, _ in zip(problem.batches(0), range(2), strict=False)):
        with torch.no_grad():
            whole, _ = problem.loss(batch, None)
            parts = [part_of(batch, rank, size, sums=problem.loss_is_a_sum) for rank in range(size)]
            losses = torch.stack([problem.loss(part, None)[0] * weight for part, weight in parts])
        torch.testing.assert_close(losses.mean(), whole, rtol=1e-5, atol=1e-6)


class Pair(NamedTuple):
    source: torch.Tensor
    target: torch.Tensor


@dataclass
class Record:
    values: torch.Tensor
    label: str


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("sums", [False, True])
def test_parts_are_the_batch_cut_into_as_many_runs(size, sums):
    whole = torch.arange(10)
    parts = [part_of(Pair(whole, whole + 1), rank, size, sums=sums) for rank in range(size)]
    assert all(type(part) is Pair for part, _ in parts)
    assert torch.equal(torch.cat([part.source for part, _ in parts]), whole)
    assert torch.equal(torch.cat([part.target for part, _ in parts]), whole + 1)
    assert [weight for _, weight in parts] == [size if sums else size * len(part.source) / 10 for part, _ in parts]


def test_what_is_no_tensor_goes_to_every_part():
    part, _ = part_of((Record(torch.arange(4), "a"), 7), 1, 2, sums=False)
    assert torch.equal(part[0].values, torch.tensor([2, 3]))
    assert (part[0].label, part[1]) == ("a", 7)


def test_a_batch_of_fewer_examples_than_ranks_is_taken_whole_by_each():
    batch = torch.arange(2)
    for rank in range(3):
        part, weight = part_of(batch, rank, 3, sums=False)
        assert torch.equal(part, batch)
        assert weight == 1.0


@pytest.mark.parametrize(
    ("device", "reason"),
    [("cuda:1", "cannot share cuda:1"), ("meta", "not on meta"), ("gpu", "There is no device 'gpu'")],
)
def test_a_device_that_several_processes_cannot_share_is_refused(device, reason):
    with pytest.raises(InvalidArgumentError, match=reason):
        parallel.join(device)


def test_without_torchrun_one_process_is_wanted(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert parallel.ranks_wanted() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert parallel.ranks_wanted() == 4
