"""Gradients of one evaluation: handed on as they arrive, and counted as 0 where they do not."""

from types import SimpleNamespace

import torch

from lsmooth.measure.delivery import Delivery
from lsmooth.trace.layout import Status


def step(*own, overwritten=False):
    """Stand for a step with these gradients at x_t, which an evaluation may overwrite."""
    gradient = SimpleNamespace(tensors=list(own), overwritten=lambda positions, gradients: overwritten)
    return SimpleNamespace(gradient=gradient)


def test_what_arrives_is_handed_on_and_the_rest_is_missing():
    seen = []
    first, second = torch.ones(2), torch.full((3,), 2.0)
    row = SimpleNamespace(flags=0)
    delivery = Delivery(step(first, None, second), row, lambda *given: seen.append(given))
    # The second parameter has no gradient at x_t, and may have one here.
    delivery.take([1, 2], [torch.zeros(1), torch.zeros(3)])
    assert [positions for positions, _ in seen] == [[1, 2]]
    assert delivery.missing() == [(0, first)]
    assert row.flags == 0


def test_where_the_own_gradient_was_overwritten_nothing_is_handed_on():
    row = SimpleNamespace(flags=int(Status.MOVED))
    delivery = Delivery(step(torch.ones(2), overwritten=True), row, lambda *given: 1 / 0)
    delivery.take([0], [torch.zeros(2)])
    assert row.flags == Status.MOVED | Status.OTHER_GRADIENT
    assert [position for position, _ in delivery.missing()] == [0]
