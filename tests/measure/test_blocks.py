"""Blocks of layers moved by themselves: closed forms, exact Hessians, a slow reference, and what is put back."""

import copy

import numpy as np
import pytest
import torch
from coupled import Quadratic, Tiny, gradients
from loops import Bare, Recorded, differences, everything, sgd, simple
from older_format import rewrite_as
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import lsmooth
from lsmooth.errors import InvalidArgumentError, TraceError


def test_on_a_quadratic_own_and_others_are_the_blocks_of_the_hessian(tmp_path):
    model = Quadratic()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    starts = []
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", blocks="parameter") as recorder:
        for _ in range(4):
            optimizer.zero_grad()
            recorder.backward(model)
            starts.append(torch.cat([model.first, model.last]).detach().numpy().copy())
            optimizer.step()
    starts.append(torch.cat([model.first, model.last]).detach().numpy().copy())
    d, h = np.diff(starts, axis=0), model.hessian.numpy()
    parts = {"first": slice(0, 3), "last": slice(3, 5)}
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        table = trace.blocks()
        assert trace.status_counts() == {"measured": 4}
    assert table.usable.all()
    for name, part in parts.items():
        rows, mine = table[table.group == name], d[:, part]
        own = np.einsum("ti,ij,tj->t", mine, h[part, part], mine)
        np.testing.assert_allclose(rows.own, own, rtol=1e-9)
        np.testing.assert_allclose(rows.others, ((d @ h)[:, part] * mine).sum(axis=1) - own, rtol=1e-9)
        size = np.linalg.norm(mine, axis=1)
        np.testing.assert_allclose(rows.own_smoothness, np.linalg.norm(mine @ h[part, part], axis=1) / size, rtol=1e-9)
        np.testing.assert_allclose(rows.smoothness, np.linalg.norm((d @ h)[:, part], axis=1) / size, rtol=1e-9)


@pytest.mark.parametrize("loop", ["plain", "accumulates", "clips", "probes"])
def test_against_a_slow_reference_on_a_transformer(tmp_path, loop):
    model = Tiny().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)
    count = 2 if loop in ("accumulates", "probes") else 1

    def batches():
        return [[torch.randint(11, (3, 5), generator=generator) for _ in range(2)] for _ in range(count)]

    fixed = batches()
    probe = [lambda x=x, y=y: model(x, y) for x, y in fixed] if loop == "probes" else None
    expected = []
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", blocks=3, probe=probe) as recorder:
        for _ in range(3):
            parts = batches()
            optimizer.zero_grad()
            for x, y in parts:
                recorder.backward(lambda x=x, y=y: model(x, y) / count)
            if loop == "clips":
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            start = copy.deepcopy(model.state_dict())
            optimizer.step()
            expected.append((start, copy.deepcopy(model.state_dict()), fixed if loop == "probes" else parts))
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 3}
        owners = dict(zip(trace.parameters, trace.metadata["blocks"], strict=True))
        table = trace.blocks().set_index(["step", "group"])
    assert len(set(owners.values())) == 3
    for step, (start, stop, parts) in enumerate(expected):
        first = gradients(model, start, parts)
        for block in set(owners.values()):
            mine = [name for name, owner in owners.items() if owner == block]
            at = gradients(model, start | {name: stop[name] for name in mine}, parts)
            change = {name: at[name] - first[name] for name in mine}
            d = {name: stop[name] - start[name] for name in mine}
            row = table.loc[(step, block)]
            own = sum(float((change[name] * d[name]).sum()) for name in mine)
            assert row.own == pytest.approx(own, rel=1e-7)
            sizes = [np.sqrt(sum(float(t.square().sum()) for t in some.values())) for some in (change, d)]
            assert row.own_smoothness == pytest.approx(sizes[0] / sizes[1], rel=1e-7)


def test_of_short_steps_it_is_the_hessians_own_block(tmp_path):
    """Against exact Hessian-vector products of autograd."""
    model = Tiny().double()
    lr = 1e-6
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randint(11, (3, 5), generator=generator) for _ in range(2))
    names, parameters = zip(*model.named_parameters(), strict=True)
    owner_of = {name: name.rpartition(".")[0] for name in names}
    # Fused attention has no second derivatives.
    with sdpa_kernel(SDPBackend.MATH):
        slopes = torch.autograd.grad(model(x, y), parameters, create_graph=True)
    steps = [-lr * slope.detach() for slope in slopes]
    own, whole = {}, {}
    for block in dict.fromkeys(owner_of.values()):
        mine = [place for place, name in enumerate(names) if owner_of[name] == block]
        along = sum((slopes[place] * steps[place]).sum() for place in mine)
        rows = torch.autograd.grad(along, parameters, retain_graph=True)
        own[block] = sum(float((rows[place] * steps[place]).sum()) for place in mine)
        whole[block] = sum(float((row * step).sum()) for row, step in zip(rows, steps, strict=True))
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", blocks="module") as recorder:
        recorder.backward(lambda: model(x, y))
        optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        table = trace.blocks().set_index("group")
    scale = max(map(abs, whole.values()))
    for block in own:
        assert table.own[block] == pytest.approx(own[block], rel=1e-3, abs=1e-5 * scale)
        assert table.own[block] + table.others[block] == pytest.approx(whole[block], rel=1e-3, abs=1e-5 * scale)
    # What other layers do is told apart: it is no small part here.
    assert max(abs(whole[block] - own[block]) for block in own) > 0.05 * scale


def test_blocks_are_moved_at_their_own_steps_only(tmp_path):
    class Counting(Recorded):
        def backward(self, closure, scaler=None):
            def seen():
                # What is in a list would be put back.
                with (tmp_path / "calls").open("a") as file:
                    file.write("x")
                return closure()

            return super().backward(seen, scaler)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    simple(model, sgd(model), Counting(tmp_path / "run.h5", blocks=(2, 3)), steps=7)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 7}
        assert trace.blocks().step.tolist() == [0, 0, 3, 3, 6, 6]
        assert np.isnan(trace.read("blocks/change")).all(axis=1).tolist() == [step % 3 != 0 for step in range(7)]
        assert trace.metadata["blocks"] == ["0", "0", "2", "2"]
        assert trace.to_frame().usable.all()
    # Training and six points at each step, one check, and two blocks at three steps.
    assert len((tmp_path / "calls").read_text()) == 7 * 7 + 1 + 2 * 3


def test_it_only_watches_where_gradients_are_borrowed_and_where_they_are_copied(tmp_path):
    def run(watch, clip):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
        between = (lambda i: nn.utils.clip_grad_norm_(model.parameters(), 0.1)) if clip else None
        return everything(*simple(model, sgd(model, momentum=0.9), watch, steps=4, between=between))

    for clip in (False, True):
        watched = run(Recorded(tmp_path / f"{clip}.h5", blocks="module", critical=True), clip)
        assert differences(run(Bare(), clip), watched) == []
        with lsmooth.Trace(tmp_path / f"{clip}.h5") as trace:
            assert trace.status_counts() == {"measured": 4}


def test_a_tensor_whose_gradient_does_not_arrive_changes_by_all_of_it(tmp_path):
    model = nn.ParameterList([nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2)])
    optimizer = sgd(model, 0.1)
    start = model[1].detach().clone()
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", blocks="parameter") as recorder:

        def closure():
            loss = model[0].square().sum()
            # Control flow that leaves the second tensor out once it has moved.
            return loss + model[1].sum() if torch.equal(model[1], start) else loss

        recorder.backward(closure)
        optimizer.step()
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        # g = 1 and d = -0.1 in both coordinates: <0 - g, d> = 0.2.
        assert trace.read("blocks/change")[0, 1] == pytest.approx(0.2, rel=1e-12)
        assert trace.read("blocks/grad_diff")[0, 1] == pytest.approx(2**0.5, rel=1e-12)


@pytest.mark.parametrize(
    ("blocks", "sentence"),
    [
        (0, "the model has 2 modules"),
        (3, "the model has 2 modules"),
        (True, "neither a number of groups"),
        (1.5, "neither a number of groups"),
        ((2, 0), "every 0 steps makes no sense"),
        ("nowhere", "No parameter falls into a group"),
    ],
)
def test_what_makes_no_sense_is_said(tmp_path, blocks, sentence):
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    with pytest.raises(InvalidArgumentError, match=sentence):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5", blocks=blocks)


def test_a_trace_is_continued_with_the_same_blocks_and_an_older_one_from_none(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    simple(model, sgd(model), Recorded(tmp_path / "run.h5", blocks=2), steps=2)
    with pytest.raises(TraceError, match="its blocks of layers are others"):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5", blocks=1, mode="a")
    simple(model, sgd(model), Recorded(tmp_path / "old.h5"), steps=2)
    with lsmooth.Trace(tmp_path / "old.h5") as trace, pytest.raises(TraceError, match="record with blocks="):
        trace.blocks()
    rewrite_as(tmp_path / "old.h5", "1.1")
    simple(model, sgd(model), Recorded(tmp_path / "old.h5", blocks=2, mode="a"), steps=2)
    with lsmooth.Trace(tmp_path / "old.h5") as trace:
        assert trace.blocks().step.tolist() == [2, 2, 3, 3]
