"""`lsmooth demo`: three files and a table."""

import pytest
from click.testing import CliRunner

import lsmooth
from lsmooth.cli import main

FILES = ["demo.h5", "figure1.png", "figure3.png"]


@pytest.fixture
def demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        return CliRunner().invoke(main, ["demo", *map(str, arguments)])

    return call


def test_the_demo_writes_what_it_names(demo, tmp_path, monkeypatch):
    # Where a line has no room for a name, the name has a line of its own; the text differs from Python to Python.
    monkeypatch.setenv("COLUMNS", "200")
    done = demo("--steps", 11, "--every", 1)
    assert done.exit_code == 0, done.output
    assert sorted(item.name for item in tmp_path.iterdir()) == FILES
    for name in FILES:
        assert f"Wrote {name}" in done.output
    for name in FILES[1:]:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    with lsmooth.Trace("demo.h5") as trace:
        assert trace.steps.tolist() == list(range(11))
        layers = set(trace.smoothness(by="module")["group"])
    table = [line.split() for line in done.output.splitlines()]
    rows = {line[0]: line[1:] for line in table if line and line[0] in layers}
    assert rows.keys() == layers
    expected = lsmooth.estimate(lsmooth.Trace("demo.h5"), by="module")
    for row in expected[expected["method"] == "trend"].itertuples():
        assert float(rows[row.group][0]) == pytest.approx(row.L0, rel=0.01)
        assert float(rows[row.group][1]) == pytest.approx(row.L1, rel=0.01)


def test_files_of_an_earlier_demo_are_kept_without_force(demo, tmp_path):
    (tmp_path / "figure3.png").write_text("precious")
    done = demo()
    assert done.exit_code == 1
    assert "figure3.png exists already" in done.output
    assert [item.name for item in tmp_path.iterdir()] == ["figure3.png"]
    assert (tmp_path / "figure3.png").read_text() == "precious"
    done = demo("-o", "elsewhere", "--steps", 2, "--every", 1)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "elsewhere" / "demo.h5").exists()
