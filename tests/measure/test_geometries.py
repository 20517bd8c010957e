"""A geometry for each layer: each tensor's own norm, and the product space's over all of them."""

import numpy as np
import pytest
import torch
from loops import Bare, Recorded, differences, everything, sgd, simple
from older_format import rewrite_as
from torch import nn

import lsmooth
from lsmooth.errors import InvalidArgumentError, TraceError
from lsmooth.measure import norms as norms_module
from lsmooth.trace.layout import GEOMETRIES

OWN = {r"attn": "spectral", r"words|head": "linf", "*": "l2"}


class Tiny(nn.Module):
    """One block of attention between words and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(11, 8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11)

    def forward(self, x, y):
        hidden = self.words(x)
        hidden = self.norm(hidden + self.attn(hidden, hidden, hidden, need_weights=False)[0])
        return nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), y.flatten())


def kind_of(name):
    return "spectral" if "attn" in name else "linf" if "words" in name or "head" in name else "l2"


def recorded(path, loop="plain", **arguments):
    model = Tiny().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(1)

    def batch():
        return [torch.randint(11, (3, 5), generator=generator) for _ in range(2)]

    if loop == "probes":
        fixed = [batch() for _ in range(3)]
        arguments["probe"] = [lambda x=x, y=y: model(x, y) for x, y in fixed]
    with lsmooth.Recorder(model, optimizer, path, gammas=(0.25, 0.75), **arguments) as recorder:
        for _ in range(4):
            optimizer.zero_grad()
            for _ in range(2 if loop == "accumulates" else 1):
                x, y = batch()
                recorder.backward(lambda x=x, y=y: model(x, y))
            if loop == "clips":
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
    return lsmooth.Trace(path)


@pytest.mark.parametrize("loop", ["plain", "accumulates", "clips", "probes"])
def test_each_tensor_has_its_own_norm_and_all_together_the_products(tmp_path, loop):
    with recorded(tmp_path / "run.h5", loop, norms=["linf", "spectral", OWN]) as trace:
        kinds = [kind_of(name) for name in trace.parameters]
        assert set(kinds) == {"l2", "linf", "spectral"}
        assert trace.metadata["layer_norms"] == kinds
        quantities = ["grad_norm", "step_norm", "grad_diff", "grad_diff_next"]
        for quantity in [*quantities, "grad_noise"] if loop == "probes" else quantities:
            own = trace.read(f"layers/{quantity}")
            for position, kind in enumerate(kinds):
                other = trace.read(GEOMETRIES[kind].dataset(quantity))
                np.testing.assert_allclose(own[..., position], other[..., position], rtol=1e-12)
        # The norm of a product space is the largest of its parts', its dual the sum of theirs.
        moved = trace.read("layers/step_norm").max(axis=1)
        changed = trace.read("layers/grad_diff").sum(axis=2)
        expected = (changed / (np.array([0.25, 0.75]) * moved[:, None])).max(axis=1)
        table = trace.smoothness(norm="layers")
        np.testing.assert_allclose(table.smoothness, expected, rtol=1e-12)
        np.testing.assert_allclose(table.grad_norm, trace.read("layers/grad_norm").sum(axis=1), rtol=1e-12)
        directional = trace.read("curvature/change_next").sum(axis=1) / moved**2
        assert (trace.curvature(norm="layers").directional >= directional * (1 - 1e-12)).all()


def test_against_singular_values_and_sums_of_the_step_itself(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(8, 4).double()
    before = [p.detach().clone() for p in model.parameters()]
    own = {"0.weight": "spectral", "2.weight": "linf", "*": "l2"}
    with lsmooth.Recorder(model, optimizer, tmp_path / "run.h5", norms=own) as recorder:
        recorder.backward(lambda: model(x).square().mean())
        gradients = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
    steps = [p.detach() - start for p, start in zip(model.parameters(), before, strict=True)]
    values = [np.linalg.svd(t.numpy(), compute_uv=False) for t in (steps[0], gradients[0])]
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        expected = [values[0].max(), steps[1].norm(), steps[2].abs().max(), steps[3].norm()]
        np.testing.assert_allclose(trace.read("layers/step_norm")[0], expected, rtol=1e-9)
        expected = [values[1].sum(), gradients[1].norm(), gradients[2].abs().sum(), gradients[3].norm()]
        np.testing.assert_allclose(trace.read("layers/grad_norm")[0], expected, rtol=1e-9)
        assert not trace.has("spectral/grad_norm")
        with pytest.raises(TraceError, match="recorded without the spectral norm"):
            trace.smoothness(norm="spectral")


def test_singular_values_are_taken_of_those_tensors_alone_that_need_them(tmp_path, monkeypatch):
    shapes = set()
    real = norms_module.singular_values

    def spy(tensor, *others):
        shapes.add(tuple(tensor.shape))
        return real(tensor, *others)

    monkeypatch.setattr(norms_module, "singular_values", spy)
    recorded(tmp_path / "run.h5", norms=OWN).close()
    assert shapes == {(24, 8), (8, 8)}


def test_the_first_pattern_that_fits_counts_and_names_of_one_norm_stay_as_they_were(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    watch = Recorded(tmp_path / "run.h5", norms={"0": "linf", "weight": "spectral", "*": "l2"})
    simple(model, sgd(model), watch, steps=2)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.metadata["layer_norms"] == ["linf", "linf", "spectral", "l2"]
        assert trace.metadata["norms"] == ["l2", "layers"]
        assert lsmooth.estimate(trace, norm="layers").reason.str.contains("usable points").all()


@pytest.mark.parametrize(
    ("norms", "sentence"),
    [
        ({"0": "linf"}, "no pattern fits the parameter 2.weight; add '\\*': 'l2'"),
        ({"9": "linf", "*": "l2"}, "the pattern '9' is the first match of no parameter"),
        ({"(": "linf", "*": "l2"}, "no regular expression"),
        ({"*": "nuclear"}, "nuclear"),
        ({"muon": {"*": "l2"}}, "for the pattern 'muon'; give one of l2, linf"),
        ([{"*": "l2"}, {"*": "linf"}], "several mappings"),
        (["layers"], "layers"),
    ],
)
def test_what_makes_no_sense_is_said(tmp_path, norms, sentence):
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    with pytest.raises(InvalidArgumentError, match=sentence):
        lsmooth.Recorder(model, sgd(model), tmp_path / "run.h5", norms=norms)


def test_a_trace_is_continued_with_the_same_norms_only(tmp_path):
    recorded(tmp_path / "run.h5", norms=OWN).close()
    with pytest.raises(TraceError, match="its layers have other norms"):
        recorded(tmp_path / "run.h5", norms={"*": "l2"}, mode="a")
    with recorded(tmp_path / "run.h5", norms=OWN, mode="a") as trace:
        assert len(trace) == 8


def test_an_older_trace_is_continued_with_norms_by_layer(tmp_path):
    recorded(tmp_path / "run.h5").close()
    rewrite_as(tmp_path / "run.h5", "1.1")
    with recorded(tmp_path / "run.h5", norms=OWN, mode="a") as trace:
        there = np.isfinite(trace.read("layers/grad_diff")).all(axis=(1, 2))
        assert there.tolist() == [False] * 4 + [True] * 4
        assert np.isfinite(trace.smoothness(norm="layers").smoothness).tolist() == there.tolist()


def test_it_only_watches(tmp_path):
    def run(watch):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
        return everything(*simple(model, sgd(model), watch, steps=3))

    watched = run(Recorded(tmp_path / "run.h5", norms=["linf", {"0": "spectral", "*": "linf"}]))
    assert differences(run(Bare()), watched) == []
