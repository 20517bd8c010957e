"""Which groups of a trace rounding has spoiled, against a loop over steps and groups."""

import dataclasses

import numpy as np
import pytest
from rows import header, rows

from lsmooth.estimators import rounding_noise
from lsmooth.trace.layout import NOISE_SHARE
from lsmooth.trace.reader import Trace
from lsmooth.trace.rounding import noise_shares, tells_rounding
from lsmooth.trace.writer import TraceWriter

NAMES = ("embedding.weight", "layers.0.weight", "layers.0.bias", "layers.1.weight", "head.weight")
GAMMAS = np.arange(1, 6) / 6
BOUND = 2.0**-6
COUNT = 41
GROUPS = {
    "global": [list(range(5))],
    "parameter": [[i] for i in range(5)],
    "module": [[0], [1, 2], [3], [4]],
    r"layers\.1": [[3]],
}


@pytest.fixture(scope="module")
def made():
    return header(parameters=NAMES, gammas=GAMMAS, coordinates=3, norms=("linf",))


def written(path, made, numbers):
    writer = TraceWriter(path, made)
    writer.append(numbers)
    writer.close()
    return Trace(path)


@pytest.fixture(scope="module")
def trace(made, tmp_path_factory):
    numbers = rows(made, 0, COUNT)
    generator = np.random.default_rng(0)
    # Rounding of all sizes beside a smooth change; one tensor's gradient is next to nothing.
    smooth = GAMMAS[:, None] * generator.lognormal(size=(COUNT, 1, 5))
    rough = generator.lognormal(-3, 1, (COUNT, 1, 5)) * (1 + 0.1 * generator.normal(size=(COUNT, 5, 5)))
    numbers["grad_diff"] = np.hypot(smooth, rough)
    numbers["grad_norm"] = generator.lognormal(1, 1, (COUNT, 5)) * [1, 1, 1e-6, 1, 1]
    numbers["rounding_bound"] = np.full(COUNT, BOUND)
    with written(tmp_path_factory.mktemp("rounding") / "run.h5", made, numbers) as trace:
        yield trace


def reference(trace, groups):
    """Return shares of rounding, step by step and group by group."""
    sizes, shares = trace.parameter_sizes, np.empty((len(trace), len(groups)))
    changes, gradients = trace.read("grad_diff").astype(float), trace.read("grad_norm").astype(float)
    for t, k in np.ndindex(*shares.shape):
        change = np.sqrt((changes[t][:, groups[k]] ** 2).sum(axis=1))
        own, whole = (np.sqrt((gradients[t][some] ** 2).sum()) for some in (groups[k], slice(None)))
        largest = BOUND * max(own, whole * np.sqrt(sizes[groups[k]].sum() / sizes.sum()))
        noise = rounding_noise(change[None, :, None], GAMMAS, np.array([[largest]]))[0, 0]
        shares[t, k] = noise / change[np.argmax(change / GAMMAS)]
    return shares


@pytest.mark.parametrize("by", GROUPS)
def test_rounding_of_a_group_is_found_from_its_own_change(trace, by):
    expected = reference(trace, GROUPS[by])
    np.testing.assert_allclose(noise_shares(trace, by), expected, rtol=1e-6)
    spoiled = expected > NOISE_SHARE
    assert 0.1 < spoiled.mean() < 0.9
    for norm in ("l2", "linf"):
        cloud = trace.cloud(by, norm=norm)
        np.testing.assert_allclose(cloud.noise_share, expected, rtol=1e-6)
        np.testing.assert_array_equal(cloud.noisy, spoiled)
        np.testing.assert_array_equal(cloud.usable, ~spoiled)
        table = trace.smoothness(by=by, norm=norm)
        np.testing.assert_array_equal(table.noisy, spoiled.ravel())
        np.testing.assert_array_equal(trace.curvature(by=by, norm=norm).usable, ~spoiled.ravel())


def test_coordinates_are_as_noisy_as_their_tensors(trace):
    owners = [NAMES.index(name) for name in trace.coordinates["parameter"]]
    tensors = trace.cloud("parameter")
    np.testing.assert_array_equal(trace.cloud("coordinate").noise_share, tensors.noise_share[:, owners])
    np.testing.assert_array_equal(trace.cloud("coordinate", endpoint=True).noisy, tensors.noisy[:, owners])


def test_a_trace_that_does_not_tell_flags_nothing(made, tmp_path):
    for number, other in enumerate(
        (
            dataclasses.replace(made, format_version="1.1"),
            dataclasses.replace(made, gammas=(0.25, 0.5, 1.0)),
        )
    ):
        with written(tmp_path / f"{number}.h5", other, rows(other, 0, COUNT)) as trace:
            assert not tells_rounding(trace)
            for by in (*GROUPS, "coordinate"):
                assert noise_shares(trace, by) is None
                cloud = trace.cloud(by)
                assert not cloud.noisy.any()
                assert cloud.usable.all()
                assert np.isnan(trace.smoothness(by=by).noise_share).all()


def test_steps_before_a_trace_was_continued_are_not_flagged(made, tmp_path):
    earlier = dataclasses.replace(made, format_version="1.1")
    written(tmp_path / "run.h5", earlier, rows(earlier, 0, 20)).close()
    numbers = rows(made, 20, 30)
    numbers["rounding_bound"][:] = 1e9
    numbers["grad_diff"][:] = 1
    writer = TraceWriter(tmp_path / "run.h5", made, "a")
    writer.append(numbers)
    writer.close()
    with Trace(tmp_path / "run.h5") as trace:
        np.testing.assert_array_equal(trace.cloud("module").noisy.all(axis=1), np.arange(30) >= 20)
        assert np.isnan(trace.cloud("module").noise_share[:20]).all()
