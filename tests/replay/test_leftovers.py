"""What a replay cannot put back is found out at the first measured step, and said once."""

import array
import collections
import contextvars
import ctypes
import dataclasses
import functools
import io
import itertools
import os
import re
import threading
import types
import warnings
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import lsmooth
from lsmooth.replay import replaying


class Counted:
    def __init__(self):
        self.count = 0


class InSlots:
    __slots__ = ("__hidden", "count", "later")

    def __init__(self):
        self.count = 0
        self.__hidden = 0

    def add(self):
        self.count += 1
        self.__hidden += 1
        self.later = self.count

    def total(self):
        return self.count + self.__hidden + self.later


@dataclasses.dataclass(slots=True)
class Record:
    count: int = 0


class CountedByClass:
    count = 0
    seen: ClassVar = []

    def add(self):
        type(self).count += 1
        self.seen.append(self.count)
        CountedByClass.latest = self.count

    def total(self):
        return self.count, self.seen, self.latest


def by_class():
    """Return an object of a new class that inherits what is counted."""
    CountedByClass.count = 0
    CountedByClass.seen = []
    return type("Inherits", (CountedByClass,), {})()


def by_methods():
    """Return an object whose methods, each called in another way, count in a variable that none of them owns."""
    seen = ()

    class Own:
        def add(self):
            self._one()
            self._two()
            self.three  # noqa: B018
            self()

        def _one(self):
            nonlocal seen
            seen += (1,)

        @staticmethod
        def _two():
            nonlocal seen
            seen += (2,)

        @property
        def three(self):
            nonlocal seen
            seen += (3,)

        def __call__(self):
            nonlocal seen
            seen += (4,)

        def read(self):
            return seen

    return Own()


def function():
    def counted():
        pass

    counted.count = 0
    return counted


def of_a_thread():
    local = threading.local()
    local.count = 0
    return local


def in_context_variable():
    variable = contextvars.ContextVar("seen")
    variable.set([])
    return variable


def of_a_metaclass():
    """Return a class whose own class counts."""
    return type("Meta", (type,), {"count": 0})("Own", (), {})


def count_in_metaclass(own):
    type(own).count += 1


def in_frame(frame):
    frame.loc[0, "count"] += 1


def in_environment():
    os.environ["LSMOOTH_SEEN"] = ""
    return os.environ


def released():
    view = memoryview(b"")
    view.release()
    return view


def in_partial():
    """Return a function that counts in a list, both of which `functools.partial` holds."""
    return functools.partial(list.append, [])


@functools.lru_cache
def remembered(step):
    return step


class Nested:
    """A chain of objects, the last of which counts."""

    def __init__(self, depth, last=Counted):
        self.inside = Nested(depth - 1, last) if depth else last()

    def last(self):
        found = self
        while isinstance(found, Nested):
            found = found.inside
        return found


def imported(text):
    module = types.ModuleType("own")
    exec(text, vars(module))
    return module


def count_up(thing):
    thing.count += 1


# How each is made, changed by the loss, and read.
PUT_BACK = {
    "object": (Counted, count_up, lambda thing: thing.count),
    "object in slots": (InSlots, InSlots.add, InSlots.total),
    "dataclass in slots": (Record, count_up, lambda thing: thing.count),
    "attributes of classes": (by_class, CountedByClass.add, CountedByClass.total),
    "class": (lambda: type("Own", (), {"count": 0}), count_up, lambda own: own.count),
    "Python module": (lambda: imported("count = 0"), count_up, lambda own: own.count),
    "small array": (lambda: np.zeros(3), lambda a: np.add(a, 1, out=a), lambda a: a.tolist()),
    "array of objects": (
        lambda: np.array([0, None], dtype=object), lambda a: a.__setitem__(0, a[0] + 1), lambda a: a.tolist()),
    "bytes": (bytearray, lambda b: b.append(1), bytes),
    "numbers": (lambda: array.array("d"), lambda a: a.append(1.0), list),
    "counter": (collections.Counter, lambda c: c.update("ab"), dict),
    "variables of methods": (by_methods, lambda own: own.add(), lambda own: own.read()),
    "function": (function, count_up, lambda counted: counted.count),
    "bound and partial": (in_partial, lambda add: add(1), lambda add: len(add.args[0])),
    "metaclass": (of_a_metaclass, count_in_metaclass, lambda own: type(own).count),
    "context variable": (in_context_variable, lambda v: v.get().append(1), lambda v: len(v.get())),
    "thread's own": (of_a_thread, count_up, lambda local: local.count),
}  # fmt: skip
SAID = {
    "cache": (lambda: remembered, lambda ask: ask(object()), "the cache of remembered"),
    "table": (lambda: pd.DataFrame({"count": [0]}), in_frame, ".*"),
    "view of memory": (lambda: memoryview(bytearray(1)), lambda view: view.__setitem__(0, view[0] + 1), "a memoryview"),
    "number of C": (lambda: ctypes.c_int(0), lambda n: setattr(n, "value", n.value + 1), r"a ctypes\.c_int"),
    "environment": (in_environment, lambda e: e.update(LSMOOTH_SEEN=e["LSMOOTH_SEEN"] + "."), r"os\.environ"),
    "hidden global": (
        object,
        lambda _: globals().update(hidden=object()),
        r"global variables of .*test_leftovers",
    ),
    "large array": (lambda: np.zeros(100_000), lambda a: np.add(a, 1, out=a), r"an array of shape \(100000,\)"),
    "large dict": (lambda: dict.fromkeys(range(5000)), lambda d: d.setdefault(len(d)), "a dict"),
    "far object": (lambda: Nested(5), lambda n: count_up(n.last()), "the contents of a .*Counted"),
    "far generator": (
        lambda: Nested(1, lambda: np.random.default_rng(0)),
        lambda n: n.last().random(),
        r"a numpy\.random\..*Generator",
    ),
    "count": (itertools.count, next, "an itertools.count"),
    "iterator": (lambda: iter(list(range(1000))), next, "a list_iterator"),
    "delegating generator": (lambda: (lambda inner: (yield from inner))(iter(list(range(1000)))), next, "a generator"),
    "generator": (lambda: (i for i in range(1000)), next, "a generator"),
    "pairs": (lambda: zip(range(1000), range(1000), strict=True), next, "a zip"),
    "text": (io.StringIO, lambda f: f.write("."), "the file StringIO"),
}
PLACES = {
    "loss": lambda model, change: change,
    "hook on a parameter": lambda model, change: model[0].weight.register_hook(lambda _: change()) and None,
    "hook after accumulation": lambda model, change: (
        model[0].weight.register_post_accumulate_grad_hook(lambda _: change()) and None
    ),
    "hook of forward": lambda model, change: model[0].register_forward_hook(lambda *_: change()) and None,
    "hook of backward": lambda model, change: model[1].register_full_backward_hook(lambda *_: change()) and None,
}


def trained(thing, change, place, path=None, *, watched=False):
    """Train three steps; return the warnings."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    inputs = torch.randn(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def apply():
        change(thing)

    in_loss = PLACES[place](model, apply)

    def loss():
        if in_loss is not None:
            in_loss()
        return model(inputs).square().mean()

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        recorder = lsmooth.Recorder(model, optimizer, path) if path is not None else None
        function = recorder.watch(loss) if watched else loss
        for _ in range(3):
            optimizer.zero_grad()
            if recorder is None or watched:
                function().backward()
            else:
                recorder.backward(loss)
            optimizer.step()
        if recorder is not None:
            recorder.close()
    return [str(warning.message) for warning in told]


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", PUT_BACK)
def test_what_can_be_put_back_is_without_a_word(kind, place, watched, tmp_path):
    make, change, read = PUT_BACK[kind]
    bare, recorded = make(), make()
    trained(bare, change, place)
    assert trained(recorded, change, place, tmp_path / "run.h5", watched=watched) == []
    assert read(recorded) == read(bare)
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 3}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", SAID)
def test_what_cannot_is_named_once(kind, place, tmp_path):
    make, change, name = SAID[kind]
    (told,) = trained(make(), change, place, tmp_path / "run.h5")

    assert re.search(f"has changed {name}, which is not put back, so that training may no", told)


@pytest.mark.parametrize("kind", SAID)
def test_what_the_loss_leaves_alone_is_not_named(kind, tmp_path):
    make, _, _ = SAID[kind]
    assert trained(make(), lambda thing: None, "loss", tmp_path / "run.h5") == []


def test_an_error_of_the_loss_in_the_first_replay_says_where_it_came_from(tmp_path):
    waiting = [torch.ones(5, 3)]

    def change(calls):
        if replaying():
            raise LookupError("empty")

    with pytest.raises(LookupError, match="empty") as caught:
        trained(waiting, change, "loss", tmp_path / "run.h5")
    # Python 3.10 has no notes.
    assert hasattr(caught.value, "__notes__") == hasattr(caught.value, "add_note")
    for note in getattr(caught.value, "__notes__", []):
        assert note.startswith("lsmooth was evaluating the loss again, at the first measured step (0); let the loss")


def test_a_cache_that_is_only_read_is_not_named(tmp_path):
    remembered(1)
    assert trained(remembered, lambda ask: ask(1), "loss", tmp_path / "run.h5") == []


def test_memory_that_is_gone_is_passed_over(tmp_path):
    assert trained(released(), lambda view: view is None, "loss", tmp_path / "run.h5") == []


def test_a_loss_that_asks_whether_it_is_replayed_changes_nothing(tmp_path):
    def change(lines):
        if not replaying():
            lines.write(".")

    lines = io.StringIO()
    assert trained(lines, change, "loss", tmp_path / "run.h5") == []
    assert lines.getvalue() == "..."
