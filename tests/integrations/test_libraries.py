"""Training libraries, as they are: every step is measured, and the weights are bit for bit those without a recorder."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import lsmooth

spec = importlib.util.spec_from_file_location("libraries", Path(__file__).with_name("libraries.py"))
libraries = importlib.util.module_from_spec(spec)
spec.loader.exec_module(libraries)
PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
MODULES = {"pytorch-ignite": "ignite", "stable-baselines3": "stable_baselines3"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", libraries.LIBRARIES)
def test_a_library_is_measured_and_not_changed(name, tmp_path, monkeypatch):
    pytest.importorskip(MODULES.get(name, name))
    monkeypatch.chdir(tmp_path)
    run = libraries.LIBRARIES[name][0]
    bare, recorded = (run(tmp_path / "run.h5", record).state_dict() for record in (False, True))
    assert all(torch.equal(value, recorded[key]) for key, value in bare.items())
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 8}
        assert (trace.read("grad_diff") > 0).any()


def test_the_page_has_a_row_for_each():
    rows = re.findall(r"^\| ([\w-]+) \| [\d.]+ \| (.*?) \| (\d+) \| 8 of 8 \|$", PAGE.read_text(), re.MULTILINE)
    assert rows == [(name, how, str(lines)) for name, (_, how, lines) in libraries.LIBRARIES.items()]
