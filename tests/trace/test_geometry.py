"""Smoothness in the norm that fits the optimizer: the recorder's and the trace's, against numpy on spelled-out runs."""

import numpy as np
import pytest
import torch
from loops import Recorded, Reference, batches, channels_last, double_precision, seed_all, sgd
from torch import nn

import lsmooth
from lsmooth.errors import InvalidArgumentError, TraceError

PRIMAL = {"l2": 2, "linf": np.inf}
DUAL = {"l2": 2, "linf": 1}


def primal(norm, tensors):
    """Norm of a displacement, given as tensors by name."""
    if norm == "spectral":
        return max(np.linalg.norm(as_matrix(t), 2) for t in tensors)
    return np.linalg.norm(np.concatenate([t.numpy().ravel() for t in tensors]), PRIMAL[norm])


def dual(norm, tensors):
    """Dual norm of a gradient, given as tensors by name."""
    if norm == "spectral":
        return sum(np.linalg.norm(as_matrix(t), "nuc") for t in tensors)
    return np.linalg.norm(np.concatenate([t.numpy().ravel() for t in tensors]), DUAL[norm])


def as_matrix(tensor):
    return tensor.flatten(1).numpy() if tensor.dim() > 1 else tensor.reshape(-1, 1).numpy()


@pytest.fixture(params=[double_precision, channels_last], ids=lambda loop: loop.__name__)
def measured(request, tmp_path):
    reference = Reference()
    for watch in (reference, Recorded(tmp_path / "run.h5", norms=("linf", "spectral"))):
        seed_all()
        request.param(watch)
    return reference, lsmooth.Trace(tmp_path / "run.h5")


@pytest.mark.parametrize("norm", ["l2", "linf", "spectral"])
@pytest.mark.parametrize("by", ["global", "module", "parameter"])
@pytest.mark.parametrize("displacement", ["layer", "global"])
def test_smoothness_in_each_norm_agrees_with_a_slow_reference(norm, by, displacement, measured):
    reference, trace = measured
    cloud = trace.cloud(by, norm=norm, displacement=displacement)
    assert cloud.norm == norm
    members = {
        "global": {"global": reference.names},
        "parameter": {name: [name] for name in reference.names},
        "module": {},
    }
    for name in reference.names:
        members["module"].setdefault(name.rpartition(".")[0], []).append(name)
    assert cloud.groups == tuple(members[by])
    for i, row in enumerate(reference.rows):
        for j, names in enumerate(members[by].values()):
            moved = primal(norm, [row["moved"][n] for n in (names if displacement == "layer" else reference.names)])
            ratios = [
                dual(norm, [along[n] - row["first"][n] for n in names]) / (gamma * moved)
                for gamma, along in zip(trace.gammas, row["along"], strict=True)
            ]
            assert cloud.smoothness[i, j] == pytest.approx(max(ratios), rel=2e-5)
            assert cloud.grad_norm[i, j] == pytest.approx(dual(norm, [row["first"][n] for n in names]), rel=2e-5)
    frame = trace.gradient_norm(by, norm=norm)
    np.testing.assert_array_equal(frame["grad_norm"], cloud.grad_norm.ravel())


def test_the_l2_numbers_do_not_depend_on_other_norms_being_kept(tmp_path):
    for name, norms in (("plain", ("l2",)), ("all", ("l2", "linf", "spectral"))):
        seed_all()
        double_precision(Recorded(tmp_path / f"{name}.h5", norms=norms))
    plain, everything = lsmooth.Trace(tmp_path / "plain.h5"), lsmooth.Trace(tmp_path / "all.h5")
    for name in ("grad_norm", "step_norm", "grad_diff", "coordinate/grad_along"):
        np.testing.assert_array_equal(plain.read(name), everything.read(name))
    assert not plain.has("linf/grad_diff")
    assert everything.metadata["norms"] == ["l2", "linf", "spectral"]


def test_all_norms_of_a_single_coordinate_are_the_same(measured):
    _, trace = measured
    np.testing.assert_array_equal(
        trace.cloud("coordinate", norm="linf").smoothness, trace.cloud("coordinate").smoothness
    )


def test_sign_descent_on_a_separable_quadratic_has_the_sum_of_its_curvatures(tmp_path):
    # f = sum_j h_j x_j^2 / 2 and d = -lr sign(g): ‖Delta‖1 / ‖gamma d‖inf = sum_j h_j, whatever the point.
    curvature = torch.linspace(0.5, 3, 7, dtype=torch.float64)

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.randn(7, dtype=torch.float64))

        def forward(self):
            return (curvature * self.x.square()).sum() / 2

    class SignDescent(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad.sign_()
            return super().step(closure)

    seed_all()
    model = Quadratic()
    optimizer = SignDescent(model.parameters(), lr=1e-2)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", norms=["linf"]) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            recorder.backward(model)
            optimizer.step()
    cloud = lsmooth.Trace(tmp_path / "run.h5").cloud(norm="linf")
    np.testing.assert_allclose(cloud.smoothness, curvature.sum().item(), rtol=1e-9)


def test_non_finite_gradients_flag_the_step_and_do_not_stop_the_run(tmp_path):
    seed_all()
    model = nn.Linear(6, 3)
    optimizer = sgd(model)
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", norms=("linf", "spectral")) as recorder:
        for i, (x, y) in enumerate(batches(2)):
            optimizer.zero_grad()
            factor = float("nan") if i else 1.0
            recorder.backward(lambda x=x, y=y, k=factor: nn.functional.cross_entropy(model(x), y) * k)
            optimizer.step()
    assert lsmooth.Trace(tmp_path / "run.h5").status_counts() == {"measured": 1, "non_finite": 1}


def test_a_norm_that_the_trace_lacks_is_named_with_the_mend(tmp_path):
    seed_all()
    double_precision(Recorded(tmp_path / "run.h5", norms=("linf",)))
    trace = lsmooth.Trace(tmp_path / "run.h5")
    with pytest.raises(TraceError, match=r"without the spectral norm; record with norms=\('l2', 'spectral'\)"):
        trace.cloud(norm="spectral")
    with pytest.raises(InvalidArgumentError, match=r"no norm named 'linfty'; did you mean linf\?"):
        trace.cloud(norm="linfty")
    with pytest.raises(InvalidArgumentError, match="no norm named 'nuclear'"):
        lsmooth.Recorder(nn.Linear(2, 2), sgd(nn.Linear(2, 2)), tmp_path / "other.h5", norms=("nuclear",))
    assert not (tmp_path / "other.h5").exists()


def test_a_run_with_other_norms_does_not_continue_the_trace(tmp_path):
    seed_all()
    double_precision(Recorded(tmp_path / "run.h5"))
    with pytest.raises(
        TraceError, match=r"only one of the two has linf/grad_diff, linf/grad_diff_next, linf/grad_norm, linf/step_norm"
    ):
        double_precision(Recorded(tmp_path / "run.h5", norms=("linf",), mode="a"))
