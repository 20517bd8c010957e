"""The recorder on every kind of training loop: it changes nothing, replays exactly, and measures right."""

import contextlib
import functools
import random
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loops import LOOPS, Bare, Recorded, Reference, batches, differences, everything, seed_all, sgd
from torch import nn

import lsmooth
from lsmooth.instrument import Instrument
from lsmooth.measure.handover import Handover
from lsmooth.replay.reach import reached
from lsmooth.trace.layout import Status

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture(params=LOOPS)
def loop(request):
    return LOOPS[request.param]


@pytest.fixture
def seen_at_once(loop, device):
    """Skip the loop whose first steps are flagged on a GPU, where nothing waits to see how its gradient was changed."""
    if device == "cuda" and loop is LOOPS["clip_past_the_version_counter"]:
        pytest.skip("flagged at first")


@pytest.fixture(autouse=True)
def gradients_taken_early(monkeypatch):
    """Take gradients as they arrive, in buckets of about one layer, as with models that are not as tiny as these."""
    monkeypatch.setattr("lsmooth.replay.arrivals._TAKEN_WHOLE_BYTES", 0)
    monkeypatch.setattr("lsmooth.replay.evaluation.BUCKET_LEAST_BYTES", 100)


def finished(loop, watch):
    seed_all()
    return everything(*loop(watch))


def test_run_with_recorder_is_bit_for_bit_the_run_without(loop, tmp_path):
    bare = finished(loop, Bare())
    recorded = finished(loop, Recorded(tmp_path / "run.h5"))
    assert differences(bare, recorded) == []


def test_replay_at_gamma_0_gives_the_steps_own_gradient_bit_for_bit(loop, seen_at_once, tmp_path, monkeypatch):
    errors = []
    check, measure = Handover._check_replay, Instrument.measure

    def spy(self, rows, extra):
        errors.extend(extra["replay_error"])
        return check(self, rows, extra)

    def check_every_step(self, step, row):
        self._checked = False
        return measure(self, step, row)

    monkeypatch.setattr(Handover, "_check_replay", spy)
    monkeypatch.setattr(Instrument, "measure", check_every_step)
    finished(loop, Recorded(tmp_path / "run.h5"))
    assert len(errors) >= 4
    assert errors == [0.0] * len(errors)


def test_estimates_agree_with_a_slow_reference(loop, seen_at_once, tmp_path):
    reference = Reference()
    finished(loop, reference)
    finished(loop, Recorded(tmp_path / "run.h5"))
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert len(trace) == len(reference.rows)
        assert trace.parameters == reference.names
        for name in ("loss", "loss_along", "loss_next", "slope", "grad_norm", "step_norm", "grad_diff"):
            expected = np.array([row[name] for row in reference.rows])
            scale = np.abs(expected).max(initial=1e-30)
            np.testing.assert_allclose(trace.read(name), expected, rtol=2e-5, atol=2e-6 * scale, err_msg=name)
        coordinates = trace.coordinates
        for i, row in enumerate(reference.rows):
            for j, (owner, index) in enumerate(zip(coordinates["parameter"], coordinates["index"], strict=True)):

                def at(gradient, owner=owner, index=index):
                    return gradient[owner].flatten()[index].item() if gradient[owner].dim() else 0.0

                along = [at(gradient) for gradient in row["along"]]
                expected = [at(row["first"]), at(row["moved"]), *along, at(row["next"])]
                got = [
                    trace.read("coordinate/grad")[i, j],
                    trace.read("coordinate/displacement")[i, j],
                    *trace.read("coordinate/grad_along")[i, :, j],
                    trace.read("coordinate/grad_next")[i, j],
                ]
                np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-7)


def test_gradients_taken_all_at_once_give_the_same_numbers(tmp_path, monkeypatch):
    finished(LOOPS["accumulation"], Recorded(tmp_path / "early.h5"))
    monkeypatch.setattr("lsmooth.replay.arrivals._TAKEN_WHOLE_BYTES", 1 << 20)
    finished(LOOPS["accumulation"], Recorded(tmp_path / "whole.h5"))
    with lsmooth.Trace(tmp_path / "early.h5") as early, lsmooth.Trace(tmp_path / "whole.h5") as whole:
        for name in ("loss_along", "grad_diff", "coordinate/grad_along"):
            np.testing.assert_array_equal(early.read(name), whole.read(name))


def test_the_loops_are_measured_well(loop, device, tmp_path):
    finished(loop, Recorded(tmp_path / "run.h5"))
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        if device == "cuda" and loop is LOOPS["clip_past_the_version_counter"]:
            assert trace.status[0] == Status.OTHER_GRADIENT
            assert set(trace.status) <= {Status.OTHER_GRADIENT, Status.MEASURED}
        elif loop is LOOPS["half_precision"]:
            # bfloat16 keeps 8 bits: interpolated points are rounded by more than 1 % of the way, and it says so.
            assert set(trace.status_counts()) == {"below_resolution"}
        else:
            assert trace.status_counts() == {"measured": len(trace)}
            assert np.isfinite(trace.smoothness()["smoothness"]).all()
    assert torch.is_grad_enabled()


class Adversary:
    """A generator that is trained through a critic, which is no part of the model that is measured."""

    def __init__(self):
        seed_all()
        self.generator = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4))
        linear = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8))
        self.critics = [nn.Sequential(linear, nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))]
        self.optimizer = sgd(self.generator)
        self.of_critic = sgd(self.critics[0])

    def loss(self, noise):
        return -self.critics[0](self.generator(noise)).mean()


def loss_by_variable(game, noise):
    generator, critic = game.generator, game.critics[0]
    return lambda: -critic(generator(noise)).mean()


CLOSURES = {
    "variable": loss_by_variable,
    "attribute": lambda game, noise: lambda: game.loss(noise),
    "bound": lambda game, noise: functools.partial(game.loss, noise),
}


def play(game, recorder, closure_of, critic_steps_last=False):
    for noise, _ in batches(5):
        game.of_critic.zero_grad()
        (game.critics[0](torch.randn(8, 4)).mean() - game.critics[0](game.generator(noise).detach()).mean()).backward()
        if not critic_steps_last:
            game.of_critic.step()
        game.optimizer.zero_grad()
        closure = closure_of(game, noise)
        recorder.backward(closure) if recorder is not None else closure().backward()
        if critic_steps_last:
            game.of_critic.step()
        game.optimizer.step()


def networks(game):
    of_critic = everything(game.critics[0], game.of_critic)
    return everything(game.generator, game.optimizer) | {f"critic.{name}": value for name, value in of_critic.items()}


@pytest.mark.parametrize("closure_of", CLOSURES.values(), ids=CLOSURES)
@pytest.mark.parametrize("how", ["backward", "watch", "probe"])
def test_a_second_network_in_the_loss_is_left_as_it_was_and_evaluated_as_it_was(closure_of, how, tmp_path):
    bare = Adversary()
    play(bare, None, closure_of)
    traces = []
    # With both networks in one model, nothing has to be looked for in the closure.
    for name, model_of in (
        ("one", lambda game: game.generator),
        ("both", lambda game: nn.ModuleList([game.generator, game.critics[0]])),
    ):
        game = Adversary()
        arguments = {"probe": [closure_of(game, x) for x, _ in batches(2, seed=5)]} if how == "probe" else {}
        with lsmooth.Recorder(model_of(game), game.optimizer, tmp_path / f"{name}.h5", **arguments) as recorder:
            watched = closure_of
            if how == "watch":
                watched = lambda game, noise, recorder=recorder: recorder.watch(closure_of(game, noise))  # noqa: E731
            play(game, recorder if how == "backward" else None, watched)
        assert differences(networks(bare), networks(game)) == []
        with lsmooth.Trace(tmp_path / f"{name}.h5") as trace:
            assert trace.status_counts() == {"measured": 5}
            traces.append({field: trace.read(field) for field in ("loss", "loss_along", "grad_norm", "grad_diff")})
    for field, values in traces[0].items():
        np.testing.assert_array_equal(values, traces[1][field], err_msg=field)


def test_a_second_network_that_moves_between_backward_and_step_flags_the_step(tmp_path):
    game = Adversary()
    with lsmooth.Recorder(game.generator, game.optimizer, tmp_path / "run.h5") as recorder:
        play(game, recorder, CLOSURES["variable"], critic_steps_last=True)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert set(trace.read("status")) == {Status.MOVED}


def test_looking_for_networks_follows_no_proxy_and_reads_no_data():
    model, hidden = nn.Linear(2, 2), nn.Linear(2, 2)
    gone = nn.Linear(2, 2)
    dead = weakref.proxy(gone)
    del gone
    data = [hidden] * 1000
    recursive = {"itself": None, "networks": (model,)}
    recursive["itself"] = recursive
    model.teachers = [hidden]
    assert reached(model).models == [model, hidden]
    del model.teachers
    loader = SimpleNamespace(sampler=SimpleNamespace(generator=random.Random(1)))
    found = reached(lambda: (dead, data, recursive, loader))
    assert found.models == [model]
    assert found.generators == []


class Noisy(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.generator = torch.Generator(torch.get_default_device()).manual_seed(3)

    def noise(self, x):
        return torch.randn(x.shape, generator=self.generator)

    def forward(self, x, noise=None):
        return self.inner(x + 0.1 * (self.noise(x) if noise is None else noise))


def noisy_loss(model, x, y, noise=None):
    return nn.functional.cross_entropy(model(x, noise), y)


def draw(path, how):
    """Train with noise that is drawn inside of the loss, or beforehand; return the state at the end."""
    seed_all()
    model = Noisy()
    optimizer = sgd(model)
    numbers, integers = np.random.default_rng(4), random.Random(5)
    with lsmooth.Recorder(model, optimizer, path) if how != "bare" else contextlib.nullcontext() as recorder:
        for x, y in batches(4):
            optimizer.zero_grad()
            if how == "beforehand":
                scale, shift, noise = float(numbers.normal()), integers.random(), model.noise(x)
                loss = functools.partial(noisy_loss, model, x * scale + shift, y, noise)
            else:

                def loss(x=x, y=y):
                    return noisy_loss(model, x * float(numbers.normal()) + integers.random(), y)

            if how == "watch":
                recorder.watch(loss)().backward()
            elif how == "bare":
                loss().backward()
            else:
                recorder.backward(loss)
            optimizer.step()
    own = [float(numbers.random()), integers.random(), model.noise(torch.zeros(1)).item()]
    return everything(model, optimizer) | {"own": own}


@pytest.mark.parametrize("how", ["backward", "watch"])
def test_generators_of_ones_own_are_left_as_they_were_and_drawn_from_as_they_were(how, tmp_path):
    state = draw(tmp_path / "inside.h5", how)
    assert differences(draw(None, "bare"), state) == []
    assert differences(draw(tmp_path / "beforehand.h5", "beforehand"), state) == []
    with lsmooth.Trace(tmp_path / "inside.h5") as one, lsmooth.Trace(tmp_path / "beforehand.h5") as other:
        assert one.status_counts() == {"measured": 4}
        for field in ("loss", "loss_along", "grad_norm", "grad_diff"):
            np.testing.assert_array_equal(one.read(field), other.read(field), err_msg=field)
