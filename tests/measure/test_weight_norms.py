"""‖x_t‖ by tensor, and the update-to-weight ratio ‖d‖ / ‖x_t‖, against the parameters themselves."""

import numpy as np
import pytest
import torch
from older_format import rewrite_as
from torch import nn

import lsmooth


def run(path, dtype=torch.float32, frozen=False):
    """Train for four steps; return the values of all tensors before and after each, float64, by step and name."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    if frozen:
        model[0].weight.requires_grad_(False)
    seen = []
    with lsmooth.Recorder(model, optimizer, path) as recorder:
        for _ in range(4):
            x = torch.randn(8, 5, dtype=dtype)
            optimizer.zero_grad()
            recorder.backward(lambda x=x: model(x).square().mean())
            before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
            optimizer.step()
            seen.append((before, {name: p.detach().double().clone() for name, p in model.named_parameters()}))
    return seen


def norm(values, names):
    return np.sqrt(sum(float(values[name].square().sum()) for name in names))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weight_norms_are_those_before_the_step(tmp_path, dtype, frozen):
    seen = run(tmp_path / "run.h5", dtype, frozen)
    table = lsmooth.Trace(tmp_path / "run.h5").smoothness(by="parameter")
    assert len(table) == 16
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for _, row in table.iterrows():
        before, after = seen[row["step"]]
        name = row["group"]
        assert row["weight_norm"] == pytest.approx(norm(before, [name]), rel=tolerance)
        ratio = float((after[name] - before[name]).norm()) / norm(before, [name])
        # The difference of two float32 numbers is exact; ‖d‖ is kept in float32.
        assert row["update_ratio"] == pytest.approx(ratio, rel=1e-5)
    assert (table[table.group == "0.weight"].update_ratio == 0).all() == frozen


def test_groups_join_the_norms_of_their_tensors(tmp_path):
    seen = run(tmp_path / "run.h5", torch.float64)
    trace = lsmooth.Trace(tmp_path / "run.h5")
    for by, members in (
        ("module", lambda group: [f"{group}.weight", f"{group}.bias"]),
        ("global", lambda _: seen[0][0]),
    ):
        for _, row in trace.smoothness(by=by).iterrows():
            assert row["weight_norm"] == pytest.approx(norm(seen[row["step"]][0], members(row["group"])), rel=1e-12)
    assert "weight_norm" not in trace.smoothness(by="coordinate")


def test_the_global_ratio_is_that_of_the_totals(tmp_path):
    run(tmp_path / "run.h5")
    trace = lsmooth.Trace(tmp_path / "run.h5")
    table = trace.smoothness()
    np.testing.assert_allclose(table.update_ratio, trace.to_frame().step_norm / table.weight_norm, rtol=1e-6)


def test_traces_of_earlier_formats_have_no_such_columns(tmp_path):
    run(tmp_path / "run.h5")
    rewrite_as(tmp_path / "run.h5", "1.1")
    trace = lsmooth.Trace(tmp_path / "run.h5")
    assert not trace.has("weight_norm")
    assert not {"weight_norm", "update_ratio"} & set(trace.smoothness(by="module").columns)
