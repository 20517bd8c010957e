"""Training curves: mean and interval over seeds."""

import itertools

import numpy as np
import pandas as pd
import pytest
from drawing import empty_axes, legend_texts, line
from scipy import stats
from small_trace import write_small_trace

import lsmooth
from lsmooth.errors import InvalidArgumentError
from lsmooth.figures import loss_frame, training_curves


def runs(optimizers=("sgd", "adam"), seeds=(0, 1, 2), epochs=5):
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {"optimizer": name, "seed": seed, "epoch": epoch, "train_loss": 3 / (1 + epoch) + generator.random()}
            for name in optimizers
            for seed in seeds
            for epoch in range(epochs)
        ]
    )


def band(ax, place):
    """Low and high edge of a line's band at its epochs."""
    path = ax.collections[place].get_paths()[0].vertices
    return {x: (path[path[:, 0] == x, 1].min(), path[path[:, 0] == x, 1].max()) for x in np.unique(path[:, 0])}


def test_mean_and_interval_are_students():
    frame = runs()
    ax = training_curves(frame, ax=empty_axes())
    assert legend_texts(ax) == ["sgd", "adam"]
    for place, name in enumerate(("sgd", "adam")):
        epochs, mean = line(ax, name)
        np.testing.assert_array_equal(epochs, range(5))
        edges = band(ax, place)
        for epoch in range(5):
            values = frame.query("optimizer == @name and epoch == @epoch")["train_loss"]
            assert mean[epoch] == pytest.approx(values.mean())
            expected = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
            assert edges[epoch] == pytest.approx(expected)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "train loss")


def test_one_seed_has_a_line_and_no_band():
    ax = training_curves(runs(seeds=(0,)), ax=empty_axes())
    assert not ax.collections
    ax = training_curves(runs(seeds=(0,)).drop(columns="seed"), ax=empty_axes())
    assert len(line(ax, "sgd")[0]) == 5


def test_lines_differ_in_dashes_as_well_as_in_colour():
    ax = training_curves(runs(tuple("abcdefghijklmno"), (0,)), ax=empty_axes())
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in ax.lines}
    assert len(looks) == len(ax.lines) == 15
    neighbours = [str(line._unscaled_dash_pattern) for line in ax.lines]
    assert all(one != other for one, other in itertools.pairwise(neighbours))


def test_a_diverged_seed_ends_the_line_and_is_told():
    frame = runs()
    frame.loc[(frame["seed"] == 1) & (frame["optimizer"] == "sgd") & (frame["epoch"] >= 3), "train_loss"] = np.nan
    ax = training_curves(frame, ax=empty_axes())
    assert line(ax, "sgd")[0].tolist() == [0, 1, 2]
    assert line(ax, "adam")[0].tolist() == [0, 1, 2, 3, 4]
    for name in ("sgd", "adam"):
        assert np.isfinite(line(ax, name)[1]).all()
    assert legend_texts(ax) == ["sgd (1 of 3 diverged)", "adam"]


def test_a_seed_that_is_not_there_yet_has_not_diverged():
    frame = runs()
    frame = frame[~((frame["seed"] == 2) & (frame["epoch"] == 4))]
    ax = training_curves(frame, ax=empty_axes())
    assert line(ax, "sgd")[0].tolist() == [0, 1, 2, 3]
    assert legend_texts(ax) == ["sgd", "adam"]


def test_other_columns_and_a_logarithmic_axis():
    frame = runs().rename(columns={"epoch": "step", "train_loss": "valid_loss", "optimizer": "run"})
    ax = training_curves(frame, x="step", y="valid_loss", hue="run", log=True, ax=empty_axes())
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("iteration", "valid loss", "log")


def test_what_cannot_be_drawn_is_one_sentence():
    with pytest.raises(InvalidArgumentError, match="did you mean train_loss"):
        training_curves(runs(), y="trainloss", ax=empty_axes())
    with pytest.raises(InvalidArgumentError, match=r"rows share their line, seed and epoch \(such as optimizer=sgd"):
        training_curves(pd.concat([runs(), runs()]), ax=empty_axes())
    with pytest.raises(InvalidArgumentError, match="no rows"):
        training_curves(runs().iloc[:0], ax=empty_axes())
    with pytest.raises(InvalidArgumentError, match="no finite value"):
        training_curves(runs().assign(train_loss=np.nan), ax=empty_axes())


def test_the_losses_of_traces_on_one_grid(small_trace, tmp_path):
    other = write_small_trace(tmp_path / "other.h5", steps=10, seed=1)
    with lsmooth.Trace(small_trace) as trace, lsmooth.Trace(other) as short:
        frame = loss_frame([trace, short])
        assert frame.groupby("run", sort=False).size().to_dict() == {"small": 10, "other": 2}
        np.testing.assert_allclose(frame.query("run == 'small'")["train_loss"], trace.loss.reshape(10, 6).mean(axis=1))
        np.testing.assert_allclose(frame.query("run == 'other'")["train_loss"][:1], short.loss[:6].mean())
        assert frame["seed"].unique().tolist() == [0, 1]
        assert set(frame["optimizer"]) == {"SGD"}
        np.testing.assert_allclose(frame["step"][:2], [2.5, 8.5])
        few = loss_frame([trace], most=1000)
        np.testing.assert_array_equal(few["train_loss"], trace.loss)
        np.testing.assert_array_equal(few["step"], trace.steps)
