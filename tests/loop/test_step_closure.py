"""Steps that are given a closure: followed without being changed."""

import pytest
import torch

from lsmooth.errors import RecorderError
from lsmooth.loop.faults import Faults
from lsmooth.loop.step_closure import closure_given, with_closure_followed

OPTIMIZER = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


@pytest.mark.parametrize(
    ("args", "kwargs", "given"),
    [
        ((OPTIMIZER,), {}, False),
        ((OPTIMIZER, None), {}, False),
        ((OPTIMIZER,), {"closure": None}, False),
        ((OPTIMIZER, len), {}, True),
        ((OPTIMIZER,), {"closure": len}, True),
        ((OPTIMIZER, torch.zeros(1)), {}, False),
        ((OPTIMIZER, torch.zeros(1), len), {}, True),
    ],
    ids=["none", "None", "None by name", "first", "by name", "tensor", "second"],
)
def test_a_closure_is_known_from_other_arguments(args, kwargs, given):
    assert closure_given(args, kwargs) == given


class Heard:
    """What happened, in its order."""

    def __init__(self):
        self.events = []

    def note(self, event, returned=None):
        def happened():
            self.events.append(event)
            return returned

        return happened


@pytest.mark.parametrize("by_name", [False, True])
def test_the_gradient_is_there_once_the_closure_has_run(by_name):
    heard = Heard()
    closure = heard.note("closure", 0.5)
    given = ((OPTIMIZER,), {"closure": closure}) if by_name else ((OPTIMIZER, closure, 3), {})
    args, kwargs = with_closure_followed(
        OPTIMIZER, *given, Faults(alone=True), heard.note("gradient"), heard.note("given up")
    )
    assert args[0] is OPTIMIZER
    assert args[2:] == given[0][2:]
    run = kwargs["closure"] if by_name else args[1]
    assert run() == 0.5
    assert heard.events == ["closure", "gradient"]


def test_a_second_call_is_a_mistake_at_the_start_and_a_lost_step_later():
    heard = Heard()
    faults = Faults(alone=True)

    def followed():
        args, _ = with_closure_followed(
            OPTIMIZER,
            (OPTIMIZER, heard.note("closure", 0.5)),
            {},
            faults,
            heard.note("gradient"),
            heard.note("given up"),
        )
        return args[1]

    run = followed()
    run()
    with pytest.raises(RecorderError, match=r"SGD\.step called its closure twice"):
        run()
    assert heard.events == ["closure", "gradient", "given up"]
    heard.events.clear()
    faults.measured = True
    run = followed()
    run()
    with pytest.warns(UserWarning, match="called its closure twice"):
        assert run() == 0.5
    assert heard.events == ["closure", "gradient", "given up", "closure"]
