"""What is drawn: names of runs."""

from pathlib import Path

from drawing import frame

from lsmooth.figures.points import run_names


def test_runs_are_named_by_what_tells_them_apart():
    assert run_names(["out/a.h5", "out/b.h5"]) == ["a", "b"]
    assert run_names(["sgd/run.h5", Path("adam/run.h5"), frame(2)]) == ["sgd/run", "adam/run", "run 3"]
    assert run_names(["a.h5", "a.h5"]) == ["run 1", "run 2"]
    assert run_names([frame(2)]) == ["run 1"]
