"""What a recorder refuses at the start, each in one sentence that says how to mend it."""

import numpy as np
import pytest
import torch
from loops import batches, classify, differences, everything, mlp, one_step, seed_all, sgd, train
from torch import nn

import lsmooth
from lsmooth.errors import InvalidArgumentError, RecorderError, TraceError
from lsmooth.trace.layout import Status

pytestmark = pytest.mark.usefixtures("device")


def test_lbfgs_is_refused(tmp_path, model):
    with pytest.raises(InvalidArgumentError, match="LBFGS evaluates the loss several times"):
        lsmooth.Recorder(model, torch.optim.LBFGS(model.parameters()), tmp_path / "run.h5")


def test_a_step_whose_closure_computes_no_gradient_is_refused(tmp_path, model):
    optimizer = sgd(model)
    (x, y), *_ = batches(1)
    with (
        lsmooth.Recorder(model, optimizer, tmp_path / "run.h5"),
        pytest.raises(RecorderError, match=r"without recorder.backward; replace loss.backward\(\)"),
    ):
        optimizer.step(lambda: classify(model, x, y))


def test_gradients_of_recorder_backward_are_measured_where_the_step_is_given_a_closure(tmp_path):
    """Trainers hand one to every step; the gradient is computed before it (it then does nothing), or inside of it."""

    def run(how):
        seed_all()
        model = mlp(nn.Dropout(0.2))
        optimizer = sgd(model, momentum=0.9)
        with lsmooth.Recorder(model, optimizer, tmp_path / f"{how}.h5") as recorder:
            for x, y in batches(4):

                def compute(x=x, y=y):
                    optimizer.zero_grad()
                    return recorder.backward(lambda: classify(model, x, y))

                if how == "inside":
                    optimizer.step(compute)
                else:
                    compute()
                    optimizer.step(closure=(lambda: None) if how == "before" else None)
        with lsmooth.Trace(tmp_path / f"{how}.h5") as trace:
            assert trace.status_counts() == {"measured": 4}
            return everything(model, optimizer), trace.read("grad_diff")

    state, changes = run("plain")
    for how in ("before", "inside"):
        other, found = run(how)
        assert differences(state, other) == []
        np.testing.assert_array_equal(found, changes)


def test_sparse_gradients_are_refused(tmp_path):
    model = nn.EmbeddingBag(5, 3, sparse=True, mode="sum")
    optimizer = sgd(model)
    with (
        lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder,
        pytest.raises(RecorderError, match="weight has a sparse gradient"),
    ):
        recorder.backward(lambda: model(torch.tensor([[0, 1]])).sum())


def test_complex_parameters_are_refused(tmp_path):
    model = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(InvalidArgumentError, match="weight is complex"):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5")


def test_optimizers_that_step_inside_backward_are_refused(tmp_path, model):
    optimizer = sgd(model)
    (x, y), *_ = batches(1)

    @torch.no_grad()
    def step_at_once(p):
        p.sub_(0.1 * p.grad)

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step_at_once)
    with (
        lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder,
        pytest.raises(RecorderError, match="changed inside backward"),
    ):
        recorder.backward(lambda: classify(model, x, y))


def test_an_optimizer_a_parameter_that_steps_inside_backward_is_named_as_such(tmp_path, model):
    of_each = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
    for p, optimizer in of_each.items():
        p.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
    (x, y), *_ = batches(1)
    with (
        lsmooth.Recorder(model, list(of_each.values()), tmp_path / "run.h5") as recorder,
        pytest.raises(RecorderError, match="inside of backward: an optimizer that steps in gradient hooks"),
    ):
        recorder.backward(lambda: classify(model, x, y))


@pytest.mark.parametrize("watched", [False, True])
def test_gradients_that_come_from_elsewhere_lead_to_a_probe(watched, tmp_path, model):
    optimizer = sgd(model)
    (x, y), *_ = batches(1)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5") as recorder:
        compute = recorder.watch(classify) if watched else classify
        for p, gradient in zip(
            model.parameters(), torch.autograd.grad(compute(model, x, y), list(model.parameters())), strict=True
        ):
            p.grad = gradient
        with pytest.raises(RecorderError, match=r"torch\.autograd\.grad or torch\.func, give the recorder probe="):
            optimizer.step()


def test_models_on_the_meta_device_are_refused(tmp_path):
    model = nn.Linear(2, 2, device="meta")
    with pytest.raises(InvalidArgumentError, match="meta device"):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5")


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda loss: loss.expand(3), r"loss of shape \(3,\)"),
        (lambda loss: None, "returned NoneType"),
        (lambda loss: loss.detach(), "depends on no parameter"),
    ],
)
def test_closures_that_return_no_loss_are_refused(every, value, message, tmp_path, model):
    optimizer = sgd(model)
    (x, y), *_ = batches(1)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", every=lambda step: every == 1) as recorder:  # noqa: SIM117
        with pytest.raises(RecorderError, match=message):
            recorder.backward(lambda: value(classify(model, x, y)))


def test_a_measured_step_without_recorder_backward_is_refused(tmp_path, model):
    optimizer = sgd(model)
    (x, y), *_ = batches(1)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5"):
        classify(model, x, y).backward()
        with pytest.raises(RecorderError, match=r"without recorder\.backward"):
            optimizer.step()


@pytest.mark.parametrize("gammas", [(), (0.0,), (-0.1,), (1.5,), (float("nan"),), (0.5, 0.5)])
def test_gammas_outside_their_range_are_refused(gammas, tmp_path, model):
    with pytest.raises(InvalidArgumentError, match="gammas="):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5", gammas=gammas)


def test_gamma_1_may_stand_beside_the_endpoint(tmp_path, model):
    (x, y), *_ = batches(1)
    trace = one_step(tmp_path / "run.h5", model, sgd(model), lambda: classify(model, x, y), gammas=(0.5, 1.0))
    assert trace.read("loss_next")[0] == trace.read("loss_along")[0, 1]
    np.testing.assert_array_equal(trace.read("coordinate/grad_next")[0], trace.read("coordinate/grad_along")[0, 1])


def test_a_model_without_shapes_is_refused(tmp_path):
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(InvalidArgumentError, match=r"^0\.weight has no shape yet; run the model on a batch before"):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5")


def test_an_optimizer_of_frozen_parameters_is_refused(tmp_path, model):
    model.requires_grad_(False)
    with pytest.raises(InvalidArgumentError, match="None of the optimizer's parameters requires a gradient"):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5")


@pytest.mark.parametrize(
    "arguments", [{"every": 0}, {"every": True}, {"every": "2"}, {"coordinates": -1}, {"mode": "r"}, {"probe": [1]}]
)
def test_arguments_out_of_range_are_refused(arguments, tmp_path, model):
    with pytest.raises(InvalidArgumentError):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5", **arguments)
    assert not (tmp_path / "run.h5").exists()


def test_arguments_may_be_numpys(tmp_path, model):
    arguments = {"every": np.int64(2), "coordinates": np.int32(1), "gammas": np.array([0.5, 1.0])}
    metadata = {"width": np.int64(8), "rate": np.float32(0.5), "sizes": np.arange(3), "sweep": {"seeds": (1, 2)}}
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", metadata=metadata, **arguments) as recorder:
        train(recorder, model, optimizer, 3)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.steps.tolist() == [0, 2]
        assert trace.metadata["every"] == 2
        assert trace.metadata["user_metadata"] == {
            "width": 8, "rate": 0.5, "sizes": [0, 1, 2], "sweep": {"seeds": [1, 2]},
        }  # fmt: skip


def test_an_existing_file_is_refused_and_left_alone(tmp_path, model):
    (tmp_path / "run.h5").write_bytes(b"precious")
    with pytest.raises(TraceError, match="exists already"):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5")
    assert (tmp_path / "run.h5").read_bytes() == b"precious"


@pytest.mark.parametrize("zeroes", ["optimizer", "model"])
def test_parameters_that_the_optimizer_loses_are_named_where_their_gradients_stay(zeroes, tmp_path, recwarn):
    def run(path):
        seed_all()
        model = mlp()
        optimizer = sgd(model)
        recorder = lsmooth.Recorder(model, optimizer, path) if path else None
        for i, (x, y) in enumerate(batches(4)):
            if i == 2:
                optimizer.param_groups[0]["params"].pop(0)
            (optimizer if zeroes == "optimizer" else model).zero_grad()
            recorder.backward(lambda: classify(model, x, y)) if recorder else classify(model, x, y).backward()  # noqa: B023
            optimizer.step()
        if recorder is not None:
            recorder.close()
        return everything(model, optimizer)

    assert differences(run(None), run(tmp_path / "run.h5")) == []
    said = [str(warning.message) for warning in recwarn if "has lost parameters" in str(warning.message)]
    status = lsmooth.Trace(tmp_path / "run.h5").status.tolist()
    if zeroes == "model":
        assert said == []
        assert status == [Status.MEASURED] * 4
    else:
        assert len(said) == 1
        assert "steps from 2 on are flagged as other_gradient; call model.zero_grad() too" in said[0]
        assert [bool(flags & Status.OTHER_GRADIENT) for flags in status] == [False, False, True, True]


def test_parameters_added_to_the_optimizer_later_are_held_and_the_steps_flagged(tmp_path, model):
    def run(path):
        seed_all()
        model = mlp()
        first, last = [module for module in model if isinstance(module, nn.Linear)]
        last.requires_grad_(False)
        optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
        recorder = lsmooth.Recorder(model, optimizer, path) if path else None
        for i, (x, y) in enumerate(batches(4)):
            if i == 2:
                last.requires_grad_(True)
                optimizer.add_param_group({"params": last.parameters(), "lr": 0.2})
            optimizer.zero_grad()
            if recorder is None:
                classify(model, x, y).backward()
            else:
                recorder.backward(lambda x=x, y=y: classify(model, x, y))
            optimizer.step()
        if recorder is not None:
            recorder.close()
        return everything(model, optimizer)

    with pytest.warns(UserWarning, match="gained parameters .* from step 2 on"):
        recorded = run(tmp_path / "run.h5")
    assert differences(run(None), recorded) == []
    trace = lsmooth.Trace(tmp_path / "run.h5")
    assert trace.status.tolist() == [Status.MEASURED, Status.MEASURED, Status.PARTIAL, Status.PARTIAL]
    assert trace.parameters == ["0.weight", "0.bias"]
    assert np.isfinite(trace.cloud().smoothness).all()
    assert trace.lr.tolist() == [[0.1]] * 4
