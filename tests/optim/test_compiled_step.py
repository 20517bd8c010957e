"""torch.compile around a step, PyTorch's own recipe: the same steps, and soon nothing is compiled anew."""

import pytest
import torch
from optimizers import EVERY, SETTINGS, set_gradients, weights

from lsmooth.optim import GeneralizedSignSGD

pytestmark = [
    pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="PyTorch 2.6 can refuse to compile anew"),
    pytest.mark.timeout(600),
    # torch.compile imports what PyTorch itself has deprecated.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
]


def steps(optimizer, params, step, numbers):
    for number in numbers:
        set_gradients(params, number)
        step()
    return [p.detach().clone() for p in params]


@EVERY
def test_a_compiled_step_is_the_step_and_is_compiled_three_times_at_most(setting):
    torch.compiler.reset()
    params, plain = weights(), weights()
    # A learning rate in a tensor changes without being compiled for.
    lr = torch.tensor(0.03, dtype=torch.float64)
    optimizer = SETTINGS[setting](params, lr=lr, weight_decay=0.1)
    other = SETTINGS[setting](plain, lr=0.03, weight_decay=0.1)
    compiled = torch.compile(lambda: optimizer.step(), backend="eager")
    # The first step makes the state, the second finds step 1, and from the third on the number is a variable.
    steps(optimizer, params, compiled, range(3))
    steps(other, plain, other.step, range(3))
    lr.fill_(0.01)
    other.param_groups[0]["lr"] = 0.01
    with torch.compiler.set_stance("fail_on_recompile"):
        got = steps(optimizer, params, compiled, range(3, 12))
    for a, b in zip(got, steps(other, plain, other.step, range(3, 12)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_with_everything_on_a_compiled_step_is_the_step():
    torch.compiler.reset()
    found = []
    for compile_it in (False, True):
        params = weights()
        optimizer = GeneralizedSignSGD(
            params,
            lr=0.03,
            betas=(0.8, 0.9),
            weight_decay=0.1,
            decoupled_weight_decay=True,
            bias_correction=True,
            fused=True,
            maximize=True,
        )
        step = torch.compile(lambda o=optimizer: o.step(), backend="eager") if compile_it else optimizer.step
        found.append(steps(optimizer, params, step, range(5)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@EVERY
def test_a_step_is_one_graph_as_that_of_torchs_own_optimizers(setting):
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    params = weights()
    optimizer = SETTINGS[setting](params, lr=torch.tensor(0.03, dtype=torch.float64))
    steps(optimizer, params, torch.compile(lambda: optimizer.step(), backend=counted), range(1))
    assert len(graphs) == 1
