"""A trace that is continued: the one that was not interrupted, and never another run's."""

import pytest
from rows import PARAMETERS, assert_rows, header, rows, write_rows

from lsmooth.errors import TraceError
from lsmooth.trace.layout import CHUNK_STEPS
from lsmooth.trace.reader import Trace
from lsmooth.trace.writer import TraceWriter

OF_THE_ENDPOINT = sorted(
    {field.name for field in header().fields()} - {f.name for f in header(endpoint=False).fields()}
)


@pytest.mark.parametrize("end", ["close", "abandon"])
@pytest.mark.parametrize("count", [0, 5, CHUNK_STEPS, 2 * CHUNK_STEPS + 9])
def test_continued_trace_is_the_one_that_was_not_interrupted(path, count, end):
    made = header()
    writer = TraceWriter(path, made)
    if count:
        writer.append(rows(made, 0, count))
    getattr(writer, end)()
    before = path.read_bytes()
    writer = TraceWriter(path, made, "a")
    assert writer.next_step == (10 * (count - 1) + 1 if count else 0)
    assert path.read_bytes() == before
    writer.append(rows(made, count, count + 50))
    writer.close(next_step=777)
    trace = Trace(path)
    assert_rows(trace, made, count + 50)
    assert trace.next_step == 777


def test_continuing_drops_what_the_checkpoint_does_not_know(path):
    made = write_rows(path, 70)
    writer = TraceWriter(path, made, "a")
    writer.go_on_from(405, rows=41)
    writer.append(rows(made, 41, 80))
    writer.close()
    assert_rows(Trace(path), made, 80)


def test_continuing_refuses_a_checkpoint_of_another_run_or_too_late(path):
    made = write_rows(path, 20)
    writer = TraceWriter(path, made, "a")
    with pytest.raises(TraceError, match="holds 20 measured steps before step 500, and the checkpoint knows of 50"):
        writer.go_on_from(500, rows=50)
    writer.append(rows(made, 20, 21))
    with pytest.raises(TraceError, match="load the checkpoint's state before the first step"):
        writer.go_on_from(100, rows=10)
    writer.close()
    path.unlink()
    writer = TraceWriter(path, made, "a")
    with pytest.raises(TraceError, match=r"There was no .* to continue"):
        writer.go_on_from(500, rows=50)
    writer.close()


@pytest.mark.parametrize(
    ("others", "difference"),
    [
        ({"parameters": PARAMETERS[:3]}, "it has 4 parameter tensors, this run has 3"),
        ({"parameters": (*PARAMETERS[:3], "tail.weight")}, "it has head.weight where this run has tail.weight"),
        ({"parameter_sizes": (10, 11, 12, 99)}, "head.weight has 13 elements there and 99 here"),
        ({"gammas": (0.25, 0.75)}, "its gammas are 0.25, 0.5, this run's are 0.25, 0.75"),
        ({"gammas": (0.5,)}, "its gammas are 0.25, 0.5, this run's are 0.5"),
        ({"endpoint": False}, f"only one of the two has {', '.join(OF_THE_ENDPOINT)}"),
        ({"coordinates": 2}, "it follows other coordinates"),
        ({"coordinates": 0}, "only one of the two has coordinate/displacement"),
        ({"groups": 1}, "its optimizer has another number of parameter groups"),
        ({"real": "float64"}, "its norms are not float64"),
        (
            {"attributes": {"objective": "mean of 1 probe losses", "probes": 1}},
            "it measures each step's own loss, this run measures the mean loss of 1 probes",
        ),
    ],
)
def test_continuing_refuses_another_run_and_names_the_difference(path, others, difference):
    write_rows(path, 5)
    before = path.read_bytes()
    with pytest.raises(TraceError, match="cannot be continued by this run") as caught:
        TraceWriter(path, header(**others), "a")
    assert difference in str(caught.value)
    assert path.read_bytes() == before
    assert Trace(path).state == "complete"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_an_older_trace_is_continued_by_as_many_probes_as_its_text_says(path, count):
    """Until format 1.2, only a text said how many."""
    objective = f"mean of {count} probe losses" if count else "the step's mini-batch loss"
    older = header(attributes={"objective": objective}, noise=count > 1, format_version="1.1")
    writer = TraceWriter(path, older)
    writer.append(rows(older, 0, 5))
    writer.close()
    for other in {0, 1, 2} - {count}:
        with pytest.raises(TraceError, match=r"this run measures|only one of the two has"):
            TraceWriter(path, header(attributes={"probes": other}, noise=other > 1), "a")
    TraceWriter(path, header(attributes={"probes": count}, noise=count > 1), "a").close()
    assert len(Trace(path)) == 5
