"""One step is measured: which points, in which order, and what each quantity sees of them."""

from types import SimpleNamespace

import pytest
import torch

from lsmooth.measure.measurement import CHECK, measure, points_of
from lsmooth.measure.quantities import Point, Quantity
from lsmooth.trace.layout import Status


@pytest.mark.parametrize(
    ("gammas", "endpoint", "expected"),
    [
        ((0.5,), False, [Point(0.5, 0)]),
        ((0.25, 0.5), True, [Point(0.25, 0), Point(0.5, 1), Point(1.0, None, True)]),
        ((0.5, 1.0), True, [Point(0.5, 0), Point(1.0, 1, True)]),
        ((0.5, 1.0), False, [Point(0.5, 0), Point(1.0, 1)]),
        ((1.0, 0.5), True, [Point(1.0, 0, True), Point(0.5, 1)]),
    ],
)
def test_the_endpoint_is_evaluated_once(gammas, endpoint, expected):
    assert points_of(gammas, endpoint) == expected
    assert not any(point.is_check for point in expected)
    assert CHECK.is_check


class Evaluation:
    """Stands for evaluating a loss again: gradients 0 and 1 arrive, one after the other."""

    def __init__(self, error_at=None):
        self.error_at = error_at
        self.inside = False

    def set_aside(self, step):
        return self

    def __enter__(self):
        self.inside = True
        return self

    def __exit__(self, *_):
        self.inside = False

    def at(self, gamma, take):
        if gamma == self.error_at:
            raise KeyError("gone")
        take([1], [torch.full((2,), gamma)])
        take([0], [torch.full((3,), gamma)])
        return torch.tensor(gamma)

    def loss_and_gradients_at_start(self):
        return torch.tensor(0.0), {0: torch.zeros(3)}


class Notes(Quantity):
    """Writes down what it sees."""

    def __init__(self, evaluation):
        self.evaluation = evaluation
        self.seen = []

    def at_start(self, step, row):
        assert self.evaluation.inside
        self.seen.append("start")

    def arrived(self, point, positions, gradients, step):
        self.seen.append((point.gamma, *positions))

    def absent(self, point, position, first):
        self.seen.append((point.gamma, "absent", position))

    def at_point(self, point, loss, row, step):
        self.seen.append((point.gamma, loss.item()))

    def clear(self):
        self.seen.append("clear")


class Gradient:
    """A step's gradient: the third tensor's does not arrive again, and the fourth had none."""

    def __init__(self, changed=False, overwritten=False):
        self._changed, self._overwritten = changed, overwritten
        self.tensors = [torch.ones(3), torch.ones(2), torch.ones(1), None]
        self.replaced = None

    def read_again(self, row):
        return self._changed

    def replace(self, gradients):
        self.replaced = gradients

    def overwritten(self, positions, gradients):
        return self._overwritten


def measured(gradient, points, error_at=None):
    evaluation = Evaluation(error_at)
    notes = Notes(evaluation)
    step = SimpleNamespace(segment=SimpleNamespace(end=lambda: notes.seen.append("end")), gradient=gradient)
    row = SimpleNamespace(flags=0, evaluated=False)
    try:
        measure(step, evaluation, [notes], points, row)
    finally:
        assert not evaluation.inside
    return notes, row


def test_each_point_is_seen_as_its_gradients_arrive_and_then_as_a_whole():
    notes, row = measured(Gradient(), points_of((0.5,), True))
    of_points = [[(g, 1), (g, 0), (g, "absent", 2), (g, g)] for g in (0.5, 1.0)]
    assert notes.seen == ["end", "start", *of_points[0], *of_points[1]]
    assert row.evaluated
    assert row.flags == 0


def test_a_changed_gradient_is_evaluated_again_and_then_not_checked():
    gradient = Gradient(changed=True)
    notes, _ = measured(gradient, [CHECK, *points_of((0.5,), False)])
    assert list(gradient.replaced) == [0]
    assert {item[0] for item in notes.seen if isinstance(item, tuple)} == {0.5}


def test_gradients_whose_memory_was_written_to_are_not_taken():
    notes, row = measured(Gradient(overwritten=True), points_of((0.5,), False))
    assert row.flags == Status.OTHER_GRADIENT
    assert (0.5, 1) not in notes.seen
    assert (0.5, "absent", 0) in notes.seen


def test_after_an_error_every_quantity_is_cleared():
    with pytest.raises(KeyError):
        measured(Gradient(), points_of((0.5,), True), error_at=1.0)
