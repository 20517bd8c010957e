"""Rows leave the device in blocks, and what the writer's thread finds comes back to the training thread."""

import numpy as np
import pytest
import torch
from rows import header

from lsmooth.errors import TraceWarning
from lsmooth.measure import handover as module
from lsmooth.measure.handover import Handover
from lsmooth.measure.row import RowLayout
from lsmooth.trace.layout import Status


class Writer:
    """Takes blocks, and decodes them when it is told to."""

    def __init__(self):
        self.blocks = []
        self.failure = None
        self.said = []

    def put(self, block, size=0, steps=()):
        self.blocks.append((block, size, list(steps)))

    def problems(self):
        said, self.said = self.said, []
        return said

    def written(self):
        return [block()[0] for block, _, _ in self.blocks]


class Listener:
    def __init__(self):
        self.heard = []
        self.sent = 0

    def put(self, measurement):
        self.heard.append(measurement)

    def send(self):
        self.sent += 1


@pytest.fixture
def layout():
    made = header(coordinates=0, groups=2)
    return RowLayout(made.fields(), made.sizes(), made.gammas, made.real)


def filled(handover, step, status=Status.MEASURED, **numbers):
    row = handover.new_row()
    row.numbers.fill_(1.0)
    for name in RowLayout.EXTRA:
        row[name].zero_()
    row["status"].fill_(int(status))
    row["step_norm"].copy_(torch.tensor([3.0, 4.0, 0.0, 0.0]))
    row["grad_diff"].copy_(torch.tensor([[1.0, 0, 0, 0], [0.0, 6, 8, 0]]))
    row["lr"].copy_(torch.tensor([0.1, 0.3]))
    row["loss"].fill_(step)
    for name, value in numbers.items():
        row[name].fill_(value)
    handover.add(row, step, 0.5 * step)


def test_rows_wait_until_a_block_is_full(layout, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_ROWS", 3)
    writer = Writer()
    handover = Handover(layout, torch.device("cpu"), writer)
    for step in range(7):
        filled(handover, step)
    assert [steps for *_, steps in writer.blocks] == [[0, 1, 2], [3, 4, 5]]
    handover.flush()
    assert [steps for *_, steps in writer.blocks] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [size for _, size, _ in writer.blocks] == [8 * layout.width * n for n in (3, 3, 1)]
    handover.flush()
    assert len(writer.blocks) == 3


def test_rows_that_have_waited_long_are_handed_over(layout, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    writer = Writer()
    handover = Handover(layout, torch.device("cpu"), writer)
    filled(handover, 0)
    handover.flush_if_old()
    assert writer.blocks == []
    now[0] = module.BLOCK_SECONDS + 0.1
    handover.flush_if_old()
    assert [steps for *_, steps in writer.blocks] == [[0]]


def test_a_block_is_decoded_to_what_the_file_takes(layout):
    writer = Writer()
    handover = Handover(layout, torch.device("cpu"), writer)
    filled(handover, 0)
    filled(handover, 10, Status.NON_FINITE)
    handover.flush()
    (rows,) = writer.written()
    assert rows["step"].tolist() == [0, 10]
    assert rows["time"].tolist() == [0.0, 5.0]
    assert rows["status"].tolist() == [Status.MEASURED, Status.NON_FINITE]
    assert rows["grad_diff"].shape == (2, 2, 4)
    np.testing.assert_array_equal(rows["lr"], np.float64([[0.1, 0.3]] * 2).astype("f4"))
    assert not set(RowLayout.EXTRA) & set(rows)


def test_the_latest_is_the_last_well_measured_and_listeners_hear_of_each(layout):
    """Smoothness: changes of 1 at gamma 0.25, of 10 at 0.5, along a step of length 5."""
    writer, listener = Writer(), Listener()
    handover = Handover(layout, torch.device("cpu"), writer, listener=listener)
    for step, status in enumerate([Status.MEASURED, Status.MEASURED, Status.MOVED]):
        filled(handover, step, status)
    handover.flush()
    assert handover.latest is None
    writer.written()
    assert [heard.step for heard in listener.heard] == [0, 1]
    latest = handover.latest
    assert (latest.step, latest.loss) == (1, 1.0)
    assert latest.smoothness == pytest.approx(10 / (0.5 * 5))
    assert latest.grad_norm == pytest.approx(2.0)
    assert latest.lr == pytest.approx(0.3)
    handover.tell()
    assert listener.sent > 0


def test_what_the_writer_has_to_say_is_a_warning_of_the_training_thread(layout):
    writer = Writer()
    handover = Handover(layout, torch.device("cpu"), writer)
    writer.said = ["the disk is full"]
    with pytest.warns(TraceWarning, match="the disk is full"):
        handover.flush()


def test_edited_gradients_and_differing_replays_are_found_out(layout):
    writer = Writer()
    handover = Handover(layout, torch.device("cpu"), writer)
    filled(handover, 0)
    handover.flush()
    writer.written()
    assert not handover.found_edited_gradient()
    assert not handover.found_difference()
    filled(handover, 1, Status.OTHER_GRADIENT, edited_grad=1.0)
    filled(handover, 2, Status.NOT_REPEATED, replay_error=0.5)
    handover.flush()
    writer.blocks[-1][0]()
    assert handover.found_edited_gradient()
    assert handover.found_difference()
    with pytest.warns(UserWarning, match=r"At step 2 the gradient at x_t, evaluated a second time, differed by 0\.5"):
        handover.tell()
