"""The step's own gradient: borrowed where training left it, and copied once the loop is seen to change it."""

import pytest
import torch

from lsmooth.loop.gradient import GradientKeeper, StepGradient
from lsmooth.measure.geometries import NormsInUse
from lsmooth.trace.layout import GEOMETRIES

pytestmark = pytest.mark.usefixtures("device")


class Row(dict):
    """Takes what a gradient says of itself."""

    def __missing__(self, name):
        self[name] = torch.zeros(())
        return self[name]


def parameters():
    found = [
        torch.nn.Parameter(torch.zeros(3, 2)),
        torch.nn.Parameter(torch.zeros(4)),
        torch.nn.Parameter(torch.zeros(2)),
    ]
    found[0].grad = torch.arange(6.0).reshape(3, 2) + 1
    found[1].grad = torch.tensor([1.0, -2.0, 3.0, -4.0])
    return found


def keeper(tensors, **arguments):
    norms = NormsInUse.of(tensors, [GEOMETRIES["l2"], GEOMETRIES["linf"]])
    settings = {"may_borrow": True, "edited_unseen": lambda: False, **arguments}
    return GradientKeeper(tensors, norms.two, norms.gradients, **settings)


def taken(tensors, scaled=False, **arguments):
    gradient = StepGradient(keeper(tensors, **arguments))
    gradient.take(scaled)
    return gradient


def test_a_borrowed_gradient_is_trainings_own_memory():
    tensors = parameters()
    gradient = taken(tensors)
    assert [t is None for t in gradient.tensors] == [False, False, True]
    assert gradient.tensors[0].data_ptr() == tensors[0].grad.data_ptr()
    assert not gradient.read_again(Row())


@pytest.mark.parametrize(
    ("arguments", "scaled"),
    [({"may_borrow": False}, False), ({"edited_unseen": lambda: True}, False), ({}, True)],
    ids=["a wrapper's", "changed before", "scaled"],
)
def test_what_may_be_changed_is_copied(arguments, scaled):
    tensors = parameters()
    gradient = taken(tensors, scaled, **arguments)
    before = tensors[0].grad.clone()
    tensors[0].grad.mul_(0.5)
    assert torch.equal(gradient.tensors[0], before)
    assert not gradient.read_again(Row())


def test_norms_are_by_tensor_and_geometry():
    gradient = taken(parameters())
    gradient.read_again(Row())
    expected = {"l2": [91.0**0.5, 30.0**0.5, 0.0], "l1": [21.0, 10.0, 0.0]}
    for kind, norms in expected.items():
        torch.testing.assert_close(gradient.norms[kind].cpu(), torch.tensor(norms, dtype=torch.float64))


EDITS = {
    "in place": lambda p: p.grad.mul_(0.5),
    "through data": lambda p: p.grad.data.mul_(0.5),
    "signs, through data": lambda p: p.grad.data.neg_(),
    "order, through data": lambda p: p.grad.data.copy_(p.grad.data.flip(0)),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_change_of_what_is_borrowed_is_seen_and_later_ones_are_copied(edit, device):
    tensors = parameters()
    kept = keeper(tensors)
    gradient = StepGradient(kept)
    gradient.take(False)
    assert kept.borrows(False)
    EDITS[edit](tensors[1])
    row = Row()
    changed = gradient.read_again(row)
    if device == "cpu" or edit == "in place":
        assert changed
        assert not kept.borrows(False)
        # The borrowed gradient is gone; evaluating it again restores it.
        assert gradient.tensors == [None, None, None]
        gradient.replace({0: tensors[0].grad, 1: torch.ones(4)})
        assert gradient.norms["l1"].tolist() == [21.0, 4.0, 0.0]
    else:
        assert row["edited_grad"].item() == 1


def test_a_replaced_gradient_stays_what_it_was():
    tensors = parameters()
    gradient = taken(tensors)
    tensors[1].grad = tensors[1].grad * 0.5
    assert not gradient.read_again(Row())
    assert gradient.tensors[1].tolist() == [1.0, -2.0, 3.0, -4.0]


def test_evaluations_that_write_to_borrowed_memory_are_noticed():
    tensors = parameters()
    gradient = taken(tensors)
    assert not gradient.overwritten([0, 1], [torch.zeros(3, 2), torch.zeros(4)])
    assert not gradient.in_graphs
    assert gradient.overwritten([0, 1], [torch.zeros(3, 2), tensors[1].grad])
    assert gradient.in_graphs


def test_accumulated_gradients_are_those_of_the_last_backward():
    tensors = parameters()
    gradient = taken(tensors, may_borrow=False)
    tensors[0].grad.add_(1)
    tensors[2].grad = torch.ones(2)
    gradient.take(False)
    assert torch.equal(gradient.tensors[0], tensors[0].grad)
    assert torch.equal(gradient.tensors[2], torch.ones(2))
