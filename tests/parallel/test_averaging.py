"""When gradients are averaged in place of DistributedDataParallel; `test_distributed.py` has several ranks."""

import contextlib
from types import SimpleNamespace

import pytest

from lsmooth.parallel.averaging import Averager


def ddp(**options):
    plain = {"find_unused_parameters": False, "static_graph": False, "mixed_precision": None, "_comm_hooks": []}
    flags = {"require_backward_grad_sync": True, "require_forward_param_sync": True}
    return SimpleNamespace(**plain | flags | options)


def test_the_plain_mean_is_taken_over():
    averager = Averager(ddp())
    assert averager.may_take_over(averager.synchronisation())


@pytest.mark.parametrize(
    "options",
    [
        {"find_unused_parameters": True},
        {"static_graph": True},
        {"mixed_precision": object()},
        {"_comm_hooks": [(print, None)]},
        {"require_backward_grad_sync": False},
    ],
)
def test_anything_else_is_not(options):
    averager = Averager(ddp(**options))
    assert not averager.may_take_over(averager.synchronisation())


def test_nor_are_backward_passes_that_say_nothing_of_ranks():
    assert not Averager(ddp()).may_take_over(contextlib.nullcontext)


def test_replays_average_as_training_did_and_leave_the_flags_as_they_were():
    model = ddp()
    averager = Averager(model)
    training = averager.synchronisation()
    model.require_backward_grad_sync = False
    with training():
        assert model.require_backward_grad_sync
    assert not model.require_backward_grad_sync
    with averager.taking_over(), training():
        assert not model.require_backward_grad_sync
        # As a forward pass without synchronisation does.
        model.require_forward_param_sync = False
    assert model.require_forward_param_sync
    with training():
        assert model.require_backward_grad_sync
