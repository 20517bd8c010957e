"""Gradients are averaged in the same groups and order on every rank, whatever order they arrive in."""

import pytest
import torch

from lsmooth.replay.averaged import AveragedArrivals

pytestmark = pytest.mark.usefixtures("device")


class Doubling:
    """Stands in for the ranks' mean: gradients come back twice as large, once they are asked for."""

    def __init__(self):
        self.started = []
        self.waiting = 0

    def start(self, gradients):
        self.started.append([gradient.clone() for gradient in gradients])
        self.waiting += 1
        assert self.waiting <= 2
        return self

    def result(self):
        self.waiting -= 1
        return [2 * gradient for gradient in self.started[-1 - self.waiting]]


def weights(count=4):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(3)) for _ in range(count)]


def averaged(parameters, losses, bucket_bytes=1, expected=None):
    """Return the groups that were handed on, and the gradients by position."""
    averager, groups, found = Doubling(), [], {}

    def take(positions, gradients):
        groups.append(list(positions))
        found.update(zip(positions, gradients, strict=True))

    expected = dict.fromkeys(parameters, len(losses)) if expected is None else expected
    with AveragedArrivals(parameters, expected, bucket_bytes, averager) as arrivals, arrivals.taken_by(take):
        for loss in losses:
            loss().backward()
    assert all(p.grad is None for p in parameters)
    assert averager.waiting == 0
    return groups, found


@pytest.mark.parametrize(
    ("bucket_bytes", "expected"), [(1, [[3], [2], [1], [0]]), (20, [[3, 2], [1, 0]]), (10_000, [[3, 2, 1, 0]])]
)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_groups_do_not_depend_on_the_order_of_arrival(bucket_bytes, expected, order):
    parameters = weights()

    def chained():
        x = 1.0
        for i in order:
            x = (x * parameters[i]).sin()
        return x.sum()

    plain = torch.autograd.grad(chained(), parameters)
    groups, found = averaged(parameters, [chained, chained], bucket_bytes)
    assert groups == expected
    for position, gradient in enumerate(plain):
        torch.testing.assert_close(found[position], 4 * gradient)


def test_what_does_not_arrive_counts_as_zero_and_holds_up_no_rank():
    parameters = weights()
    groups, found = averaged(parameters, [lambda: sum(parameters[i].square().sum() for i in (0, 1, 3))])
    assert groups == [[3], [2], [1], [0]]
    assert torch.equal(found[2], torch.zeros_like(parameters[2]))
    torch.testing.assert_close(found[3], 4 * parameters[3].detach())


def test_kinds_of_numbers_are_averaged_apart():
    parameters = [*weights(2), torch.nn.Parameter(torch.ones(3, dtype=torch.float64)), *weights(1)]
    groups, found = averaged(parameters, [lambda: sum(p.sum().double() for p in parameters)], 10_000)
    assert groups == [[3], [2], [1, 0]]
    assert found[2].dtype == torch.float64


def test_a_parameter_that_took_no_part_in_training_is_handed_on_as_it_is():
    parameters = weights(2)
    groups, found = averaged(parameters, [lambda: sum(p.sum() for p in parameters)], expected={parameters[0]: 1})
    assert groups == [[0], [1]]
    assert found[1].tolist() == [1.0, 1.0, 1.0]
