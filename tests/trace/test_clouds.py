"""Estimates from a trace against a slow, obvious reference, whatever the groups; and no more is read than asked."""

import re

import numpy as np
import pytest
from rows import header, rows

from lsmooth.trace.layout import CHUNK_STEPS
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter

NAMES = (
    "embedding.weight",
    "layers.0.weight",
    "layers.0.bias",
    "layers.1.weight",
    "layers.1.bias",
    "head.weight",
    "scale",
)


MODULES = {
    "embedding": NAMES[:1],
    "layers.0": NAMES[1:3],
    "layers.1": NAMES[3:5],
    "head": NAMES[5:6],
    "(root)": NAMES[6:],
}


COUNT = CHUNK_STEPS + 9


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    made = header(parameters=NAMES)
    path = tmp_path_factory.mktemp("reader") / "run.h5"
    writer = TraceWriter(path, made)
    numbers = rows(made, 0, COUNT)
    numbers["status"][3] = 2
    # One tensor stands still at one step.
    numbers["step_norm"][5, 1] = 0
    writer.append(numbers)
    writer.abandon()
    return Trace(path)


def reference(trace, names, displacement):
    """Return smoothness and gradient norm of a set of tensors, step by step."""
    smoothness, norms = [], []
    for t in range(len(trace)):
        places = [trace.parameters.index(name) for name in names]
        changed, moved, gradient = (
            trace.read(name)[t].astype(float) for name in ("grad_diff", "step_norm", "grad_norm")
        )
        d = np.sqrt(sum(moved[i] ** 2 for i in (places if displacement == "layer" else range(len(NAMES)))))
        ratios = [
            np.sqrt(sum(changed[g, i] ** 2 for i in places)) / (gamma * d) if d > 0 else np.nan
            for g, gamma in enumerate(trace.gammas)
        ]
        smoothness.append(max(ratios))
        norms.append(np.sqrt(sum(gradient[i] ** 2 for i in places)))
    return smoothness, norms


@pytest.mark.parametrize("displacement", ["layer", "global"])
@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("global", {"global": NAMES}),
        ("parameter", {name: (name,) for name in NAMES}),
        ("module", MODULES),
        (r"layers\.(\d)", {"0": NAMES[1:3], "1": NAMES[3:5]}),
        (re.compile("weight|bias"), {"weight": (NAMES[0], NAMES[1], NAMES[3], NAMES[5]), "bias": (NAMES[2], NAMES[4])}),
        ({NAMES[4]: "b", NAMES[1]: "a", NAMES[3]: "a"}, {"a": (NAMES[1], NAMES[3]), "b": (NAMES[4],)}),
    ],
)  # fmt: skip
def test_estimates_of_groups_are_those_of_the_definition(trace, by, groups, displacement):
    cloud = trace.cloud(by, displacement=displacement)
    assert cloud.groups == tuple(groups)
    for column, names in enumerate(groups.values()):
        smoothness, norms = reference(trace, names, displacement)
        np.testing.assert_allclose(cloud.smoothness[:, column], smoothness, rtol=1e-12)
        np.testing.assert_allclose(cloud.grad_norm[:, column], norms, rtol=1e-12)
    # The step that is flagged enters no fit, nor does a group that stood still.
    assert not cloud.usable[3].any()
    assert (~cloud.usable).sum() == len(groups) + np.isnan(cloud.smoothness).sum()


def test_nothing_is_read_that_is_not_asked_for(trace, monkeypatch):
    asked = []
    read = Trace.read

    def noted(self, name, rows=None, columns=None):
        asked.append((name, columns))
        return read(self, name, rows, columns)

    monkeypatch.setattr(Trace, "read", noted)
    trace.cloud("global")
    trace.to_frame()
    assert not {"grad_diff", "grad_norm", "step_norm"} & {name for name, _ in asked}
    trace.cloud({NAMES[3]: "one"})
    assert [columns for name, columns in asked if name == "grad_diff"] == [slice(3, 4)]
