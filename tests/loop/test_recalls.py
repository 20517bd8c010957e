"""A model and a criterion, watched together: measured as with `recorder.backward`, the loop being left as it is."""

import contextlib
import functools
import gc
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from loops import batches, classify, differences, everything, mlp, seed_all, sgd
from torch import nn
from torch.nn import functional as F

import lsmooth
from lsmooth.errors import InvalidArgumentError, RecorderError

FIELDS = ("step", "status", "loss", "loss_along", "loss_next", "grad_norm", "step_norm", "grad_diff",
          "coordinate/grad_along")  # fmt: skip


def numbers(path):
    with lsmooth.Trace(path) as trace:
        return {name: trace.read(name) for name in FIELDS}


@dataclass
class Output:
    features: torch.Tensor
    scores: torch.Tensor


class Net(nn.Module):
    """A network with random numbers and buffers, whose output has one of several forms."""

    def __init__(self, form="tensor"):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Tanh())
        self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3))
        self.form = form

    def forward(self, x):
        features = self.body(x)
        scores = self.head(features)
        return {
            "tensor": scores,
            "tuple": (features, scores),
            "dict": {"scores": scores, "features": features},
            "dataclass": Output(features, scores),
            "distribution": torch.distributions.Categorical(logits=scores),
        }[self.form]


class Smoothed(nn.Module):
    """A criterion with a buffer that its calls change, and random numbers of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, scores, targets):
        if self.training:
            self.mean.mul_(0.9).add_(scores.detach().mean(0), alpha=0.1)
        return F.cross_entropy(scores - self.mean, targets) * (1 + 0.1 * torch.rand(()))


class Library:
    """A loss as some libraries have it: an object with more to it than being called."""

    name = "a loss"

    def __call__(self, scores, *, target):
        return F.cross_entropy(scores.float(), target)

    def decodes(self, scores):
        return scores.argmax(1)


def siamese(net, criterion, x, y):
    return criterion(net(x), net(x.flip(0)), net(-x))


def noisy_targets(net, criterion, x, y):
    scores = net(x)
    # Drawn between the two calls.
    return criterion(scores, (y + torch.randint(2, y.shape)) % 3)


def other_batch_between(net, criterion, x, y):
    scores = net(x)
    net(2 * x)
    return criterion(scores, y)


def mixed(net, criterion, x, y):
    with torch.autocast("cpu", torch.bfloat16):
        scores = net(x)
    return criterion(scores.float(), y)


def accumulated(net, criterion, x, y):
    return (criterion(net(x[:4]), y[:4]) + 2 * criterion(net(x[4:]), y[4:])) / 3


LOOPS = {
    "function": ("tensor", F.cross_entropy, lambda net, criterion, x, y: criterion(net(x), y)),
    "module": ("tensor", nn.CrossEntropyLoss(), lambda net, criterion, x, y: criterion(net(x), y)),
    "keywords": ("tensor", F.cross_entropy, lambda net, criterion, x, y: criterion(target=y, input=net(x))),
    "object": ("tensor", Library(), lambda net, criterion, x, y: criterion(net(x), target=y)),
    "tuple": ("tuple", F.cross_entropy, lambda net, criterion, x, y: criterion(net(x)[1], y)),
    "whole dict": ("dict", lambda out, y: F.cross_entropy(out["scores"], y) + out["features"].square().mean(),
                   lambda net, criterion, x, y: criterion(net(x), y)),
    "whole dataclass": ("dataclass", lambda out, y: F.cross_entropy(out.scores, y),
                        lambda net, criterion, x, y: criterion(net(x), y)),
    "nested": ("tensor", lambda pairs: sum(F.cross_entropy(*pair) for pair in pairs["all"]),
               lambda net, criterion, x, y: criterion({"all": [(net(x), y), (net(-x), y)]})),
    "policy": ("distribution", lambda log_probs, returns: -(log_probs * returns).mean(),
               lambda net, criterion, x, y: criterion(net(x).log_prob(y), x.sum(1))),
    "of a view": ("tensor", F.binary_cross_entropy,
                  lambda net, criterion, x, y: criterion(net(x)[:, :1].sigmoid().squeeze(1), (y == 1).float())),
    "siamese": ("tensor", nn.TripletMarginLoss(), siamese),
    "its own buffer and noise": ("tensor", Smoothed(), lambda net, criterion, x, y: criterion(net(x), y)),
    "noise between": ("tensor", F.cross_entropy, noisy_targets),
    "buffers between": ("tensor", F.cross_entropy, other_batch_between),
    "autocast": ("tensor", nn.CrossEntropyLoss(), mixed),
    "several": ("tensor", nn.CrossEntropyLoss(), accumulated),
}  # fmt: skip


@pytest.mark.parametrize("name", LOOPS)
def test_a_plain_loop_is_measured_as_with_recorder_backward_and_not_changed(name, tmp_path):
    form, criterion, compute = LOOPS[name]

    def run(how):
        seed_all()
        # Losses of two criteria are two evaluations, each with the buffers that it began with.
        net = mlp(nn.Dropout(0.2)) if name == "several" else Net(form)
        optimizer = sgd(net, momentum=0.9)
        if isinstance(criterion, Smoothed):
            criterion.mean.zero_()
        recorder = None if how == "bare" else lsmooth.Recorder(net, optimizer, tmp_path / f"{how}.h5", every=2)
        judge = recorder.watch(net, criterion) if how == "watched" else criterion
        for x, y in batches(7):
            optimizer.zero_grad()
            if how == "recorded":
                recorder.backward(lambda x=x, y=y: compute(net, judge, x, y))
            else:
                compute(net, judge, x, y).backward()
            optimizer.step()
        if recorder is not None:
            recorder.close()
        assert not net._forward_hooks
        return everything(net, optimizer)

    bare = run("bare")
    assert differences(bare, run("watched")) == []
    assert differences(bare, run("recorded")) == []
    one, other = numbers(tmp_path / "watched.h5"), numbers(tmp_path / "recorded.h5")
    assert one["step"].tolist() == [0, 2, 4, 6]
    assert set(one["status"]) == {1}
    for field, values in one.items():
        scale = np.abs(other[field]).max()
        np.testing.assert_allclose(values, other[field], rtol=1e-5, atol=1e-5 * scale, err_msg=field)


def test_a_library_s_loss_keeps_what_else_it_has(tmp_path):
    net = Net()
    with lsmooth.Recorder(net, sgd(net), tmp_path / "run.h5") as recorder:
        loss = recorder.watch(net, Library())
        assert loss.name == "a loss"
        assert loss.decodes(torch.eye(3)).tolist() == [0, 1, 2]
        module = nn.CrossEntropyLoss()
        assert recorder.watch(net, module) is module


def test_a_generator_s_loss_by_way_of_the_discriminator(tmp_path):
    """Both are watched for the generator's step; for the discriminator's, the fake batch stays what it is."""

    def run(how):
        seed_all()
        maker, judge = mlp(nn.BatchNorm1d(8)), nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        of_maker, of_judge = sgd(maker), sgd(judge)
        with contextlib.ExitStack() as stack:
            bce = bce_of_judge = F.binary_cross_entropy_with_logits
            if how != "bare":
                recorder = stack.enter_context(lsmooth.Recorder(maker, of_maker, tmp_path / f"{how}-g.h5"))
                second = stack.enter_context(lsmooth.Recorder(judge, of_judge, tmp_path / f"{how}-d.h5"))
            if how == "watched":
                bce, bce_of_judge = recorder.watch([maker, judge], bce), second.watch(judge, bce)
            for z, _ in batches(4):
                fake = maker(z)
                of_judge.zero_grad()
                if how == "recorded":
                    second.backward(lambda fake=fake: bce(judge(fake.detach()), torch.zeros(8, 1)))
                else:
                    # Not detached, as it happens: the generator's gradients are zeroed below.
                    bce_of_judge(judge(fake), torch.zeros(8, 1)).backward(retain_graph=True)
                of_judge.step()
                of_maker.zero_grad()
                if how == "recorded":
                    seed = torch.get_rng_state()
                    torch.set_rng_state(seed)
                    recorder.backward(lambda z=z: bce(judge(maker(z)), torch.ones(8, 1)))
                else:
                    bce(judge(fake), torch.ones(8, 1)).backward()
                of_maker.step()
        return {**everything(maker, of_maker), "judge": judge.state_dict()}

    bare, watched = run("bare"), run("watched")
    assert (
        differences({k: v for k, v in bare.items() if k != "judge"}, {k: v for k, v in watched.items() if k != "judge"})
        == []
    )
    assert all(torch.equal(bare["judge"][name], value) for name, value in watched["judge"].items())
    run("recorded")
    for kind in "gd":
        one, other = numbers(tmp_path / f"watched-{kind}.h5"), numbers(tmp_path / f"recorded-{kind}.h5")
        assert one["status"].tolist() == [1, 1, 1, 1]
        for field, values in one.items():
            np.testing.assert_allclose(values, other[field], rtol=1e-4, atol=1e-6, err_msg=field)


@pytest.mark.parametrize("watched", ["criterion", "both"])
def test_an_input_whose_graph_comes_from_outside_is_named(watched, tmp_path):
    net = Net()
    optimizer = sgd(net)
    (x, y) = batches(1)[0]
    with lsmooth.Recorder(net, optimizer, tmp_path / "run.h5") as recorder:
        both = watched == "both"
        criterion = recorder.watch(net, F.cross_entropy) if both else recorder.watch(F.cross_entropy)
        scores = net(x)
        criterion(scores + 1 if both else scores, y).backward()
        operation = "AddBackward0" if both else "AddmmBackward0"
        with pytest.raises(RecorderError, match=rf"The input input of cross_entropy .* \({operation}\)"):
            optimizer.step()


def test_gradients_zeroed_between_model_and_criterion_and_steps_left_out(tmp_path):
    def run(watch):
        seed_all()
        net = mlp()
        optimizer = sgd(net)
        with lsmooth.Recorder(net, optimizer, tmp_path / f"{watch}.h5", every=2) as recorder:
            criterion = recorder.watch(net, F.cross_entropy) if watch else None
            for i, (x, y) in enumerate(batches(9)):
                if watch:
                    scores = net(x)
                    optimizer.zero_grad()
                    criterion(scores, y).backward()
                else:
                    optimizer.zero_grad()
                    recorder.backward(lambda x=x, y=y: classify(net, x, y))
                if i % 4 == 2:
                    continue
                optimizer.step()
        return numbers(tmp_path / f"{watch}.h5")

    one, other = run(True), run(False)
    # A step whose model was called before the last one turned out to be left out goes unmeasured.
    kept = np.isin(other["step"], one["step"])
    assert kept.sum() >= 4
    for field, values in one.items():
        np.testing.assert_array_equal(values, other[field][kept], err_msg=field)


def test_nothing_of_a_step_is_kept_alive(tmp_path):
    net = Net("tuple")
    optimizer = sgd(net)
    with lsmooth.Recorder(net, optimizer, tmp_path / "run.h5") as recorder:
        criterion = recorder.watch(net, nn.CrossEntropyLoss())
        inputs = []
        for x, y in batches(4):
            optimizer.zero_grad()
            inputs.append(weakref.ref(x))
            criterion(net(x)[1], y).backward()
            optimizer.step()
            # An evaluation whose output goes nowhere.
            net(x)
        del x, y
        gc.collect()
        assert [ref() for ref in inputs] == [None] * 4


def test_what_is_no_model_or_no_criterion_is_refused(tmp_path):
    net = Net()
    with lsmooth.Recorder(net, sgd(net), tmp_path / "run.h5") as recorder:
        for models, criterion in ((net.forward, F.cross_entropy), ([], F.cross_entropy), (net, 3)):
            with pytest.raises(InvalidArgumentError, match="takes the module that the loop calls"):
                recorder.watch(models, criterion)
        with pytest.raises(InvalidArgumentError, match="takes the function that computes the loss, not Tensor"):
            recorder.watch(torch.ones(1))


WEIGHTS = torch.linspace(0.5, 2, 8)
# What a loop makes of a criterion's losses, one an example: each has a weight.
REDUCED = {
    "mean": torch.mean,
    "sum of weighted": lambda losses: (losses * WEIGHTS).sum() / 8,
    "masked": lambda losses: losses[WEIGHTS > 1].mean(),
    "halves": lambda losses: losses[:4].mean() + 0.5 * losses[4:].mean(),
}
# Weights that depend on the losses themselves.
BENT = {
    "Sqrt": lambda losses: losses.mean().sqrt(),
    "Log": lambda losses: 3 * losses.mean().log(),
    "Mul": lambda losses: ((1 - torch.exp(-losses)) ** 2 * losses).mean(),
    "Div": lambda losses: losses.sum() / losses.mean(),
    "Pow": lambda losses: losses.square().mean(),
    "Abs": lambda losses: (losses.mean() - 0.1).abs() + 0.1,
    "Topk": lambda losses: losses.topk(3)[0].mean(),
    "Logsumexp": lambda losses: losses.logsumexp(0),
}


@pytest.mark.parametrize("module", [False, True])
@pytest.mark.parametrize("name", REDUCED)
def test_a_criterion_may_leave_the_mean_to_the_loop(name, module, tmp_path):
    plain = nn.CrossEntropyLoss(reduction="none") if module else functools.partial(F.cross_entropy, reduction="none")

    def run(watched):
        seed_all()
        net = mlp(nn.Dropout(0.2))
        optimizer = sgd(net)
        with lsmooth.Recorder(net, optimizer, tmp_path / f"{watched}.h5") as recorder:
            criterion = recorder.watch(net, plain) if watched else plain
            for x, y in batches(4):
                optimizer.zero_grad()
                for part in (2, 4):
                    if watched:
                        (REDUCED[name](criterion(net(x), y)) / part).backward()
                    else:
                        recorder.backward(lambda: REDUCED[name](plain(net(x), y)) / part)  # noqa: B023
                optimizer.step()
        return [p.tolist() for p in net.parameters()]

    assert run(True) == run(False)
    with lsmooth.Trace(tmp_path / "True.h5") as trace, lsmooth.Trace(tmp_path / "False.h5") as other:
        assert trace.status_counts() == {"measured": 4}
        for field in ("loss", "loss_along", "grad_diff", "grad_norm"):
            np.testing.assert_allclose(trace.read(field), other.read(field), rtol=1e-5, err_msg=field)


@pytest.mark.parametrize("name", BENT)
def test_what_gives_losses_weights_that_change_along_the_step_is_named(name, tmp_path):
    net = mlp()
    optimizer = sgd(net)
    with lsmooth.Recorder(net, optimizer, tmp_path / "run.h5") as recorder:
        criterion = recorder.watch(net, functools.partial(F.cross_entropy, reduction="none"))
        (x, y) = batches(1)[0]
        # A penalty beside the loss is no part of what is made of it.
        (BENT[name](criterion(net(x), y)) + 0 * net(x).exp().sum()).backward()
        with pytest.raises(RecorderError, match=rf"The loop makes {name}Backward\d of a loss that is watched"):
            optimizer.step()
