"""What a header says of the datasets that a trace has."""

import numpy as np
import pytest
from rows import header

from lsmooth.trace.layout import FIELDS, version_number


def names(**arguments):
    return {field.name for field in header(**arguments).fields()}


def test_what_is_not_measured_has_no_dataset():
    everything = names(noise=True, norms=("linf", "spectral", "layers"), critical=True, blocks=True)
    assert everything == {field.name for field in FIELDS}
    assert names(coordinates=0) & {f.name for f in FIELDS if "coordinates" in f.needs} == set()
    fewer = names(noise=True, norms=("linf", "layers"), critical=True, blocks=True)
    assert everything - fewer == {f.name for f in FIELDS if "spectral" in f.needs}
    assert "critical_gamma" not in names()
    assert "loss_next" not in names(endpoint=False)
    assert "grad_noise" not in names()


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_an_earlier_format_has_the_datasets_of_its_time(version):
    later = {field.name for field in FIELDS if version_number(field.since) > version_number(version)}
    assert names(norms=("linf",), format_version=version) & later == set()
    assert names(norms=("linf",), format_version=version) | later >= names(norms=("linf",))


@pytest.mark.parametrize("real", ["float32", "float64"])
def test_a_record_holds_a_row(real):
    made = header(real=real)
    record = made.record()
    assert record.names == ("row", *(field.name for field in made.fields()), "crc32")
    assert record["grad_norm"] == np.dtype((np.dtype(real), (4,)))
    assert record["grad_diff"].shape == (2, 4)
    assert record["coordinate/grad"].shape == (3,)
    assert record["lr"].shape == (2,)
    assert record["loss"] == np.float64
