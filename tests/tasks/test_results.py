"""The file of a comparison's results: it comes back as it was, belongs to one comparison, and has one writer."""

import pytest

from lsmooth.tasks.engines import RunResult
from lsmooth.tasks.results import Results, ResultsError

TASK = "transformer-encoder"


def result(value):
    """Return the result of a run with two reports."""
    metrics = {"loss": value, "perplexity": value + 1}
    report = {"epoch": 0.5, "train_loss": value, "clipped": 1, "steps": 5, "metrics": metrics, "seconds": 2.5}
    return RunResult("finished", [{"step": step, **report} for step in (5, 10)])


def test_results_come_back_as_they_were(tmp_path):
    path = tmp_path / "r.h5"
    results = Results(path, {"task": TASK})
    results.add("one", {"lr": 0.1, "betas": (0.9, 0.99)}, result(1.5))
    results.add("two", {"lr": 0.2}, RunResult("diverged", []))
    results.close()
    back = Results(path, {"task": TASK}, "a")
    assert list(back) == ["one", "two"]
    assert back["one"] == result(1.5)
    assert back["two"].outcome == "diverged"
    back.check("one", {"lr": 0.1, "betas": (0.9, 0.99)})
    with pytest.raises(ResultsError, match=r"lr: 0\.1 there and 0\.3 here"):
        back.check("one", {"lr": 0.3, "betas": (0.9, 0.99)})
    assert [item.name for item in tmp_path.iterdir()] == ["r.h5"]


@pytest.mark.parametrize(
    ("content", "mode", "sentence"),
    [
        (b"", "a", "cannot be read"),
        (b"no results", "a", "cannot be read"),
        (b"no results", "x", "exists already"),
    ],
)
def test_files_that_are_no_results(content, mode, sentence, tmp_path):
    path = tmp_path / "r.h5"
    path.write_bytes(content)
    with pytest.raises(ResultsError, match=sentence):
        Results(path, {}, mode)
    assert path.read_bytes() == content


def test_results_of_another_comparison_are_not_continued(tmp_path):
    Results(tmp_path / "r.h5", {"task": "gpt2"}).close()
    with pytest.raises(ResultsError, match="its task is gpt2, not resnet20"):
        Results(tmp_path / "r.h5", {"task": "resnet20"}, "a")


def test_a_file_of_results_has_one_writer(tmp_path):
    path = tmp_path / "r.h5"
    sentence = r"r\.h5 is being written by another `lsmooth compare`; wait for it to end, or choose another -o\.$"
    with Results(path, {}) as results:
        for mode in ("a", "w"):
            with pytest.raises(ResultsError, match=sentence):
                Results(path, {}, mode)
        # Each run that ends puts another file in the place of the one before.
        results.add("one", {}, result(1.0))
        for mode in ("a", "w"):
            with pytest.raises(ResultsError, match=sentence):
                Results(path, {}, mode)
    with Results(path, {}, "a") as back:
        assert list(back) == ["one"]
    # What could not be continued is not locked.
    with pytest.raises(ResultsError, match="its task is"):
        Results(path, {"task": TASK}, "a")
    with Results(path, {}, "w") as anew:
        assert list(anew) == []
    assert [item.name for item in tmp_path.iterdir()] == ["r.h5"]


def test_curves_are_a_row_for_each_run_and_report(tmp_path):
    with Results(tmp_path / "r.h5", {}) as results:
        results.add("one", {}, result(1.5))
        results.add("two", {}, result(2.5))
        frame = results.curves({"two": {"optimizer": "sgd"}, "one": {"optimizer": "adam"}})
    assert frame["optimizer"].tolist() == ["sgd", "sgd", "adam", "adam"]
    assert frame["step"].tolist() == [5, 10, 5, 10]
    assert frame["perplexity"].tolist() == [3.5, 3.5, 2.5, 2.5]
    assert "metrics" not in frame
