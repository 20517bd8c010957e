"""Gradients are handed on as a backward pass delivers them, each once, and whole."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lsmooth.replay.arrivals import Arrivals, count_arrivals, counted_arrivals

pytestmark = pytest.mark.usefixtures("device")


class Taken:
    """Takes gradients, and copies them."""

    def __init__(self):
        self.buckets = []
        self.gradients = {}

    def __call__(self, positions, gradients):
        self.buckets.append(list(positions))
        for position, gradient in zip(positions, gradients, strict=True):
            assert position not in self.gradients
            self.gradients[position] = gradient.clone()


def layers(count=4):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(3, 3)) for _ in range(count)]


def chain(weights, times=1):
    x = torch.ones(3)
    for _ in range(times):
        for weight in weights:
            x = torch.tanh(weight @ x)
    return x.sum()


def plain_gradients(weights, times=1, losses=1):
    for _ in range(losses):
        chain(weights, times).backward()
    found = [w.grad for w in weights]
    for w in weights:
        w.grad = None
    return found


def counted(weights, times=1, losses=1):
    with counted_arrivals(weights) as counts:
        plain_gradients(weights, times, losses)
    return counts


@pytest.mark.parametrize("losses", [1, 3])
@pytest.mark.parametrize("bucket_bytes", [1, 50, 10_000])
def test_gradients_come_whole_and_are_those_of_backward(losses, bucket_bytes):
    """With several microbatches, too, of which each delivers a part."""
    weights = layers()
    expected = plain_gradients(weights, losses=losses)
    counts = counted(weights, losses=losses)
    assert set(counts.values()) == {losses}
    taken = Taken()
    with Arrivals(weights, counts, bucket_bytes) as arrivals, arrivals.taken_by(taken):
        for _ in range(losses):
            chain(weights).backward()
    assert sorted(taken.gradients) == [0, 1, 2, 3]
    for position, gradient in enumerate(expected):
        assert torch.equal(taken.gradients[position], gradient)
    assert [w.grad for w in weights] == [None] * 4
    # The last layer's come first, one by one where a bucket is full at once.
    if bucket_bytes == 1:
        assert taken.buckets == [[3], [2], [1], [0]]
    elif bucket_bytes == 10_000:
        assert len(taken.buckets) == 1


def test_without_counts_all_are_handed_on_at_the_end():
    weights = layers()
    taken = Taken()
    with Arrivals(weights, None, 1) as arrivals, arrivals.taken_by(taken):
        chain(weights).backward()
        assert taken.buckets == []
    assert taken.buckets == [[0, 1, 2, 3]]


def test_what_did_not_become_whole_is_handed_on_at_the_end():
    """Control flow that depends on the point may leave a use of a weight out."""
    weights = layers()
    counts = dict.fromkeys(weights, 2)
    taken = Taken()
    with Arrivals(weights, counts, 1) as arrivals, arrivals.taken_by(taken):
        chain(weights).backward()
        assert taken.buckets == []
    assert sorted(taken.gradients) == [0, 1, 2, 3]


def test_a_weight_in_two_reentrant_checkpoints_arrives_twice_and_is_taken_once():
    weight = torch.nn.Parameter(torch.eye(3) * 0.5)

    def loss():
        x = torch.ones(3, requires_grad=True)
        for _ in range(2):
            x = checkpoint(lambda x: torch.tanh(weight @ x), x, use_reentrant=True)
        return x.sum()

    with counted_arrivals([weight]) as counts:
        loss().backward()
    expected, weight.grad = weight.grad, None
    assert counts == {weight: 2}
    taken = Taken()
    with Arrivals([weight], counts, 1) as arrivals, arrivals.taken_by(taken):
        loss().backward()
    assert torch.equal(taken.gradients[0], expected)


def test_hooks_are_gone_afterwards():
    weights = layers()
    taken = Taken()
    with Arrivals(weights, counted(weights), 1) as arrivals, arrivals.taken_by(taken):
        chain(weights).backward()
    chain(weights).backward()
    assert len(taken.buckets) == 4
    assert all(w.grad is not None for w in weights)


def test_a_weight_that_was_frozen_since_is_waited_for_and_stays_frozen():
    weights = layers(2)
    counts = counted(weights)
    weights[0].requires_grad_(False)
    with Arrivals(weights, counts, 1) as arrivals:
        assert not weights[0].requires_grad
        weights[0].requires_grad_(True)
        taken = Taken()
        with arrivals.taken_by(taken):
            chain(weights).backward()
    assert taken.buckets == [[1], [0]]


def test_frozen_weights_are_not_counted():
    weights = layers(2)
    weights[0].requires_grad_(False)
    counts, hooks = {}, []
    count_arrivals(weights, counts, hooks)
    assert len(hooks) == 1
    chain(weights).backward()
    for hook in hooks:
        hook.remove()
    assert counts == {weights[1]: 1}
