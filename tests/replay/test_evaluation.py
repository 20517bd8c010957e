"""A step's loss and gradient again at points of its segment, and everything put back."""

import pytest
import torch

from lsmooth.loop.gradient import GradientKeeper, StepGradient
from lsmooth.loop.step import Companion, Step
from lsmooth.measure.geometries import NormsInUse
from lsmooth.replay.evaluation import Evaluation, joined
from lsmooth.replay.microbatch import Microbatch
from lsmooth.replay.segment import Segment
from lsmooth.replay.state import Surroundings
from lsmooth.trace.layout import GEOMETRIES

pytestmark = pytest.mark.usefixtures("device")


class Run:
    """One step on f(x) = Σ x⁴ / 4, whose gradient is x³, halved over two microbatches."""

    def __init__(self, device, divisor=1, microbatches=2):
        # The closure reads variables, not this object: replays put attributes back, too.
        x = self.x = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
        other = self.other = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        parameters = [x]
        segment = Segment(parameters)
        segment.begin(parameters)
        share = 1.0 if divisor > 1 else 1 / microbatches

        def closure():
            return share * (x**4).sum() / 4 + 0 * other.sum()

        surroundings = Surroundings.capture(closure, device_type=device)
        norms = NormsInUse.of(parameters, [GEOMETRIES["l2"]])
        keeper = GradientKeeper(parameters, norms.two, norms.gradients, may_borrow=True, edited_unseen=lambda: False)
        self.x.grad = self.x.detach() ** 3
        gradient = StepGradient(keeper)
        gradient.take(False)
        self.start = self.x.detach().clone()
        companion = Companion(self.other, self.other.detach().clone(), self.other._version)
        self.step = Step(
            number=0,
            microbatches=tuple(Microbatch(closure, surroundings, None) for _ in range(microbatches)),
            loss=torch.tensor(0.0),
            gradient=gradient,
            segment=segment,
            active=(0,),
            lr=(0.1,),
            flags=0,
            arrivals={self.x: microbatches},
            companions=(companion,),
            divisor=divisor,
        )
        with torch.no_grad():
            self.x.add_(torch.tensor([0.3, 0.3, -0.3], dtype=torch.float64))
            self.other.add_(1)
        segment.end()
        self.stop = self.x.detach().clone()
        self.evaluation = Evaluation(parameters, torch.float64)

    def at(self, gamma):
        return self.start + gamma * (self.stop - self.start)


@pytest.mark.parametrize(("divisor", "microbatches"), [(1, 1), (1, 2), (3, 3)])
def test_loss_and_gradient_are_those_of_the_point(device, divisor, microbatches):
    run = Run(device, divisor, microbatches)
    before = run.x.grad
    found = {}
    with run.evaluation.set_aside(run.step) as replay:
        assert run.x.grad is None
        # What another optimizer has stepped since is as it was at backward.
        assert run.other.tolist() == [1.0, 1.0]
        for gamma in (0.0, 0.25, 1.0):

            def consume(where, gradients, gamma=gamma):
                found[gamma] = (list(where), gradients[0].clone())

            loss = replay.at(gamma, consume)
            torch.testing.assert_close(loss.to(run.x.device), (run.at(gamma) ** 4).sum() / 4)
    for gamma, (where, gradient) in found.items():
        assert where == [0]
        torch.testing.assert_close(gradient, run.at(gamma) ** 3)
    assert torch.equal(run.x, run.stop)
    assert run.x.grad is before
    assert run.other.tolist() == [2.0, 2.0]


def test_the_gradient_at_the_start_can_be_had_again(device):
    run = Run(device)
    with run.evaluation.set_aside(run.step) as replay:
        loss, found = replay.loss_and_gradients_at_start()
        replay.at(1.0, lambda where, gradients: None)
    assert list(found) == [0]
    torch.testing.assert_close(found[0], run.start**3)
    torch.testing.assert_close(loss, (run.start**4).sum() / 4)


def test_everything_is_put_back_after_an_error(device):
    run = Run(device)
    before = run.x.grad

    def moved():
        with run.evaluation.set_aside(run.step) as replay:
            replay.at(0.5, lambda where, gradients: None)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        moved()
    assert torch.equal(run.x, run.stop)
    assert run.x.grad is before
    assert run.other.tolist() == [2.0, 2.0]


def test_the_loss_of_a_step_is_the_sum_of_microbatches_or_the_mean_of_probes():
    losses = [torch.tensor(1.0), torch.tensor(2.0), torch.tensor(6.0)]
    assert joined(losses).item() == 9
    assert joined(losses, 3).item() == 3
    assert joined(losses[:1]).item() == 1
