"""Estimates from a trace against a slow, obvious reference, whatever the groups; and no more is read than asked."""

import re

import numpy as np
import pytest
from rows import MODULES_OF_NETWORK, NETWORK

from lsmooth.trace.reader import Trace


def reference(trace, names, displacement):
    """Return smoothness and gradient norm of a set of tensors, step by step."""
    smoothness, norms = [], []
    for t in range(len(trace)):
        places = [trace.parameters.index(name) for name in names]
        changed, moved, gradient = (
            trace.read(name)[t].astype(float) for name in ("grad_diff", "step_norm", "grad_norm")
        )
        d = np.sqrt(sum(moved[i] ** 2 for i in (places if displacement == "layer" else range(len(NETWORK)))))
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
        ("global", {"global": NETWORK}),
        ("parameter", {name: (name,) for name in NETWORK}),
        ("module", MODULES_OF_NETWORK),
        (r"layers\.(\d)", {"0": NETWORK[1:3], "1": NETWORK[3:5]}),
        (
            re.compile("weight|bias"),
            {"weight": (NETWORK[0], NETWORK[1], NETWORK[3], NETWORK[5]), "bias": (NETWORK[2], NETWORK[4])},
        ),
        ({NETWORK[4]: "b", NETWORK[1]: "a", NETWORK[3]: "a"}, {"a": (NETWORK[1], NETWORK[3]), "b": (NETWORK[4],)}),
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
    trace.cloud({NETWORK[3]: "one"})
    assert [columns for name, columns in asked if name == "grad_diff"] == [slice(3, 4)]
