"""The line from x_t to x_{t+1}: exact at its ends, and put back bit for bit."""

import pytest
import torch

from lsmooth.replay.segment import Segment

pytestmark = pytest.mark.usefixtures("device")


def moved(dtype=torch.float32):
    """Return parameters at x_{t+1}, and both ends."""
    torch.manual_seed(0)
    parameters = [
        torch.nn.Parameter(torch.randn(4, 3).to(dtype)),
        torch.nn.Parameter(torch.randn(3, 5).to(dtype).T),
        torch.nn.Parameter(torch.zeros(0).to(dtype)),
    ]
    segment = Segment(parameters)
    segment.begin(parameters)
    start = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.randn_like(p))
    segment.end()
    return segment, parameters, start, [p.detach().clone() for p in parameters]


def same(tensors, others):
    return all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_both_ends_are_exact_and_points_between_lie_on_the_line(dtype):
    segment, parameters, start, stop = moved(dtype)
    segment.move_to(0.0)
    assert same(parameters, start)
    for gamma in (1 / 6, 0.5, 5 / 6):
        segment.move_to(gamma)
        for p, a, b in zip(parameters, start, stop, strict=True):
            expected = a.double() + gamma * (b.double() - a.double())
            torch.testing.assert_close(p.detach().double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    segment.move_to(1.0)
    assert same(parameters, stop)


def test_parameters_are_put_back_bit_for_bit_and_only_when_they_were_moved():
    segment, parameters, _, stop = moved()
    versions = [p._version for p in parameters]
    segment.put_back()
    assert [p._version for p in parameters] == versions
    segment.move_to(0.3)
    assert not same(parameters, stop)
    segment.put_back()
    assert same(parameters, stop)


def test_parameters_that_were_lent_are_moved_before_they_are_used():
    segment, parameters, _, stop = moved()
    for p in segment.parameters_to_overwrite():
        p.data.fill_(7)
    segment.put_back()
    assert same(parameters, stop)


def test_memory_is_kept_for_tensors_of_the_same_kind():
    segment, parameters, _, _ = moved()
    assert segment.fits(parameters)
    others = [torch.nn.Parameter(torch.zeros_like(p)) for p in parameters]
    assert segment.fits(others)
    before = [t.data_ptr() for t in segment.start]
    segment.begin(others)
    assert [t.data_ptr() for t in segment.start] == before
    assert same(segment.start, others)
    assert not segment.fits(parameters[:2])
    assert not segment.fits([parameters[0].double(), *parameters[1:]])
    assert not segment.fits([parameters[0], parameters[1].contiguous(), parameters[2]])


def test_a_segment_of_nothing_is_a_segment():
    segment = Segment([])
    segment.begin([])
    segment.end()
    segment.put_back()
    assert segment.parameters == segment.start == segment.stop == []
    assert segment.fits([])
