"""Loss and gradient along single steps."""

import numpy as np
import pytest
import torch
from drawing import empty_axes, legend_texts, line

import lsmooth
from lsmooth.errors import InvalidArgumentError
from lsmooth.figures import segment_profile, style


@pytest.fixture(scope="module")
def quadratic(tmp_path_factory):
    """f(x) = x'Hx/2 with H = diag(1, 4), descended with lr 0.1: everything along a step is known."""
    path = tmp_path_factory.mktemp("quadratic") / "run.h5"

    class Bowl(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.x = torch.nn.Parameter(torch.tensor([3.0, 2.0], dtype=torch.float64))

        def forward(self):
            return (torch.tensor([1.0, 4.0], dtype=torch.float64) * self.x.square()).sum() / 2

    bowl = Bowl()
    optimizer = torch.optim.SGD(bowl.parameters(), lr=0.1)
    with lsmooth.Recorder(bowl, optimizer, path, every=2) as recorder:
        for _ in range(20):
            optimizer.zero_grad()
            recorder.backward(bowl)
            optimizer.step()
    return path


def test_both_quantities_agree_with_the_closed_form(quadratic):
    h = np.array([1.0, 4.0])
    x = np.array([3.0, 2.0]) * (1 - 0.1 * h) ** 6
    d = -0.1 * h * x
    gammas, loss = line(segment_profile(quadratic, steps=[6, 10], ax=empty_axes()), "step 6")
    np.testing.assert_allclose(gammas, [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    expected = [(h * (x + gamma * d) ** 2).sum() / 2 - (h * x**2).sum() / 2 for gamma in gammas]
    np.testing.assert_allclose(loss, expected, rtol=1e-9, atol=1e-12)
    ax = segment_profile(quadratic, steps=[6, 10], quantity="gradient", ax=empty_axes())
    gammas, change = line(ax, "step 6")
    np.testing.assert_allclose(change, gammas * np.linalg.norm(h * d), rtol=1e-9)
    assert legend_texts(ax) == ["step 6", "step 10"]
    assert "nabla" in ax.get_ylabel()


def test_by_default_five_steps_from_first_to_last(quadratic):
    assert legend_texts(segment_profile(quadratic, ax=empty_axes())) == [f"step {k}" for k in (0, 4, 8, 14, 18)]


def test_what_cannot_be_drawn_is_one_sentence(quadratic, tmp_path):
    with pytest.raises(InvalidArgumentError, match=r"Step 7 was not measured in .*; the nearest that was is [68]\."):
        segment_profile(quadratic, steps=[7], ax=empty_axes())
    with pytest.raises(InvalidArgumentError, match="neither 'loss' nor 'gradient'"):
        segment_profile(quadratic, quantity="los", ax=empty_axes())
    with pytest.raises(InvalidArgumentError, match="not from int"):
        segment_profile(3, ax=empty_axes())
    with pytest.raises(InvalidArgumentError, match="names no step"):
        segment_profile(quadratic, steps=[], ax=empty_axes())
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with lsmooth.Recorder(model, optimizer, tmp_path / "still.h5") as recorder:
        recorder.backward(lambda: model(torch.ones(1, 2)).sum())
        optimizer.step()
    with pytest.raises(InvalidArgumentError, match="no step that was measured well"):
        segment_profile(tmp_path / "still.h5", ax=empty_axes())


def test_the_legend_leaves_the_line_at_zero_whole(quadratic):
    with style():
        ax = segment_profile(quadratic, steps=[0], ax=empty_axes())
        ax.figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    zero = ax.transData.transform((0, 0))[1]
    assert not box.y0 <= zero <= box.y1
