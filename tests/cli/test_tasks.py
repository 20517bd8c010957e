"""`lsmooth tasks`: every task is listed, with the data that is here."""

import pytest
from click.testing import CliRunner

from lsmooth import tasks
from lsmooth.cli import main
from lsmooth.optim import NAMES

SIGNS = {
    "transformer-encoder": "wiki.train.tokens",
    "transformer-translation": "train.de",
    "gpt2": "wiki.train.tokens",
    "resnet20": "data_batch_1.bin",
    "awd-lstm": "ptb.train.txt",
}


def listed(*arguments):
    """Return the lines of the list by task, each by its first word."""
    done = CliRunner().invoke(main, ["tasks", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    found, name = {}, ""
    for line in done.output.splitlines():
        if line.startswith(" "):
            key, text = line.split(None, 1)
            found[name][key] = text
        else:
            name = line.split(":")[0]
            found[name] = {}
    return found


def test_every_task_is_listed_with_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = listed()
    assert found.keys() == set(tasks.NAMES) == SIGNS.keys()
    for name, lines in found.items():
        task = tasks.get(name)
        assert "Figure" in lines["shows"]
        assert lines["optimizer"].startswith(f"{task.optimizer}, lr")
        assert lines["folder"].startswith(f"not found in ., {name}, data, data/{name}; looked for ")
        assert SIGNS[name] in lines["folder"]
        assert task.hub in lines["hub"]


def test_the_papers_optimizers_are_listed_with_their_hyperparameters():
    found = listed()
    assert found["resnet20"]["sgd-clip-momentum,"] == (
        "lr 10.0, max_norm 0.1, momentum 0.9, nesterov True, weight_decay 0.0001"
    )
    for name, lines in found.items():
        task = tasks.get(name)
        others = {f"{other}," for other in NAMES if other != task.optimizer and task.optimizer_defaults(other, "paper")}
        assert {key for key in lines if key.endswith(",")} == others
        assert len(others) == (0 if name in ("transformer-encoder", "gpt2") else 5)


@pytest.mark.parametrize("name", SIGNS)
@pytest.mark.parametrize("place", [".", "data", "data/{}", "elsewhere"])
def test_data_is_found_where_it_is(name, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / place.format(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SIGNS[name]).touch()
    found = listed() if place != "elsewhere" else listed("--data", "elsewhere")
    assert found[name]["folder"] == f"found: --data {place.format(name)}"
    assert "not found" in found["resnet20" if name != "resnet20" else "awd-lstm"]["folder"]


def test_a_folder_that_is_not_there_is_said():
    done = CliRunner().invoke(main, ["tasks", "--data", "/nowhere"])
    assert done.exit_code == 1
    assert "no folder /nowhere" in done.output
