"""Data sets from the hub: what is asked of the package `datasets`, and what is said when it cannot."""

import sys
import types

import pytest

from lsmooth.errors import DataError
from lsmooth.tasks.hub import load_hub


class Hub:
    """Stands for the package `datasets`."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = None

    def load_dataset(self, *args, **kwargs):
        self.asked = (args, kwargs)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def hub(monkeypatch):
    def stand_in(answer):
        made = Hub(answer)
        module = types.ModuleType("datasets")
        module.load_dataset = made.load_dataset
        monkeypatch.setitem(sys.modules, "datasets", module)
        return made

    return stand_in


def test_the_data_set_of_a_task_is_asked_for_with_configuration_and_revision(hub):
    made = hub({"train": [1]})
    assert load_hub("hub", "owner/name", "raw", "branch") == {"train": [1]}
    assert made.asked == (("owner/name", "raw"), {"revision": "branch"})


def test_another_data_set_or_folder_is_asked_for_as_it_is(hub):
    made = hub({"train": [1]})
    load_hub("hub:some/where", "owner/name", "raw", "branch")
    assert made.asked == (("some/where",), {})


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ConnectionError("no route.\nmore lines"), "no route"), (ValueError(""), "ValueError")],
)
def test_whatever_goes_wrong_is_one_sentence(hub, error, reason):
    hub(error)
    with pytest.raises(DataError) as caught:
        load_hub("hub", "owner/name")
    assert str(caught.value) == (
        f"owner/name could not be loaded with datasets ({reason}); check the name and the connection, or give a folder "
        "with --data DIR."
    )


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'lsmooth\[data\]'"):
        load_hub("hub", "owner/name")
