"""Checkpoints: one per trace; damaged or edited ones are refused in one sentence."""

import itertools
import os
import random
import shutil

import pytest
import torch
from edited_checkpoint import edited, edits, putting, replaced, write

import lsmooth
from lsmooth.errors import LsmoothError
from lsmooth.tasks.checkpoint import CheckpointError, checkpoint_path, load_checkpoint
from lsmooth.tasks.plan import make_plan
from lsmooth.tasks.session import Session

# AWD-LSTM carries a state from batch to batch, and generalized SignSGD has two moments.
TINY = {"embedding": 6, "hidden": 6, "layers": 2, "bptt": 5, "batch_size": 4, "report_every": 2, "steps": 30}
RECORDING = {"every": 2, "coordinates": 1, "densities": True}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with a corpus of few words, so that checkpoints are small."""
    folder = tmp_path_factory.mktemp("corpus")
    words = random.Random(0).choices(["the", "market", "fell", "by", "some", "points"], k=600)
    for split in ("train", "valid", "test"):
        lines = [" ".join(words[start : start + 6]) for start in range(0, 600, 6)]
        (folder / f"ptb.{split}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def planned(corpus):
    return make_plan("awd-lstm", data=str(corpus), changes=TINY)


def stopped(planned, path, steps=5, **changes):
    """Begin a run, and leave it after some steps with trace and checkpoint."""
    plan, data = planned
    with Session(plan.with_hyperparameters(changes), path, RECORDING, data=data) as session:
        for _ in itertools.islice(session.run.steps(session.recorder), steps):
            pass
        session.save()
    return session


@pytest.fixture(scope="module")
def run(planned, tmp_path_factory):
    """Trace of a run that was left after five steps; its checkpoint is beside it."""
    path = tmp_path_factory.mktemp("run") / "run.h5"
    stopped(planned, path)
    return path


@pytest.fixture
def copied(run, tmp_path):
    """Copies of trace and checkpoint."""
    for path in (run, checkpoint_path(run)):
        shutil.copy(path, tmp_path)
    return tmp_path / run.name


def content_of(path):
    """What is in a checkpoint."""
    return torch.load(path, weights_only=True)


def refusal(trace):
    """Return the sentence that refuses to resume a run; check that the trace stays as it was."""
    before = trace.read_bytes()
    with pytest.raises(LsmoothError) as caught:
        Session.resume(trace).close()
    assert trace.read_bytes() == before
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


# --- one checkpoint for one trace ---


def test_traces_with_names_alike_have_checkpoints_of_their_own(planned, tmp_path):
    names = ("lr0.1", "lr0.5", "run", "run.h5", "run.hdf5", "run.1.h5")
    sessions = {name: stopped(planned, tmp_path / name, lr=10.0**-number) for number, name in enumerate(names)}
    assert len({session.checkpoint_path for session in sessions.values()}) == len(names)
    for name, session in sessions.items():
        with Session.resume(tmp_path / name) as again:
            assert again.plan == session.plan
            mine = again.run.problem.model.state_dict()
            assert all(torch.equal(value, mine[key]) for key, value in session.run.problem.model.state_dict().items())


def test_a_checkpoint_of_another_run_is_refused(planned, copied, tmp_path):
    stopped(planned, tmp_path / "other.h5")
    shutil.copy(checkpoint_path(tmp_path / "other.h5"), checkpoint_path(copied))
    assert "is of another run than" in refusal(copied)


def test_trace_and_checkpoint_may_be_renamed_together(copied, tmp_path):
    renamed = tmp_path / "renamed.h5"
    checkpoint_path(copied).rename(checkpoint_path(renamed))
    copied.rename(renamed)
    with Session.resume(renamed) as session:
        assert session.run.step == 5


# --- damage ---


def test_no_checkpoint_with_a_flipped_bit_is_read(run, tmp_path):
    whole = checkpoint_path(run).read_bytes()
    path = tmp_path / "run.checkpoint.pt"
    rng = random.Random(0)
    # Bytes of weights and of the archive's directory, and each of the checksum and its mark.
    places = [*rng.sample(range(len(whole)), 150), *range(len(whole) - 47, len(whole))]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt is damaged: [^\n]*\.$"):
            load_checkpoint(path)
    path.write_bytes(whole)
    assert load_checkpoint(path).run["position"]["step"] == 5


def test_no_checkpoint_that_was_cut_or_grew_is_read(run, tmp_path):
    whole = checkpoint_path(run).read_bytes()
    path = tmp_path / "run.checkpoint.pt"
    rng = random.Random(1)
    for size in [0, 1, 40, *rng.sample(range(len(whole)), 30), *range(len(whole) - 50, len(whole))]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt is [^\n]*\.$"):
            load_checkpoint(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_a_page_of_an_earlier_checkpoint_is_noticed(planned, tmp_path):
    session = stopped(planned, tmp_path / "run.h5", steps=3)
    before = session.checkpoint_path.read_bytes()
    with Session.resume(tmp_path / "run.h5") as session:
        next(session.run.steps(session.recorder))
        session.save()
    after = session.checkpoint_path.read_bytes()
    pages = [start for start in range(0, len(after), 512) if before[start : start + 512] != after[start : start + 512]]
    assert len(pages) > 10
    for start in pages:
        session.checkpoint_path.write_bytes(after[:start] + before[start : start + 512] + after[start + 512 :])
        with pytest.raises(CheckpointError):
            load_checkpoint(session.checkpoint_path)


def test_what_is_no_file_is_not_read(copied):
    path = checkpoint_path(copied)
    path.unlink()
    os.mkfifo(path)
    assert "not a checkpoint" in refusal(copied)


# --- edited by someone who wrote the checksum anew ---


def test_no_edited_structure_is_resumed(copied):
    """A fixed number of random edits: an entry removed, added, or replaced by a value of another kind."""
    path = checkpoint_path(copied)
    content = content_of(path)
    for place, kind, wrong in edits(content, 200, random.Random(2)):
        write(path, edited(content, place, kind, wrong))
        try:
            sentence = refusal(copied)
        except BaseException as error:
            raise AssertionError(f"{kind} {wrong!r} at {place}") from error
        # It says of which run.
        assert str(copied) in sentence, f"{kind} {wrong!r} at {place}"


def test_less_than_no_averaged_steps_are_refused(copied):
    path = checkpoint_path(copied)
    place = ("run", "problem", "averaging", "steps")
    write(path, replaced(content_of(path), place, putting(-1)))
    assert "the number of averaged steps is not a number from 0 on" in refusal(copied)


@pytest.mark.parametrize(
    ("probe", "sentence"),
    [
        ({"probe": 8}, "the probes have no number of examples"),
        ({"probe_size": 4}, "the probes have no number of examples"),
        ({"probe": -8, "probe_size": 4}, "the probes have no number of examples"),
        ({"probe": 8, "probe_size": 0}, "the probes have no number of examples"),
        ({"probe": 8, "probe_size": "4"}, "probe_size"),
        ({"probe": 8, "probe_size": 3}, "cannot be cut into probes of 3"),
        ({"probe": 10**9, "probe_size": 4}, "too few for probes"),
        ({"blocks": ["module"]}, "the blocks of layers are not said by a pair"),
        ({"blocks": 3}, "blocks"),
        ({"blocks": ["module", 0]}, "give a positive int"),
        ({"blocks": ["(", 1]}, "regular expression"),
    ],
)
def test_probes_and_blocks_that_no_run_has_are_refused(probe, sentence, copied):
    content = content_of(checkpoint_path(copied))
    content["recording"] |= probe
    write(checkpoint_path(copied), content)
    assert sentence in refusal(copied)


@pytest.mark.parametrize("metric", ["loss", "perplexity"])
def test_reports_without_what_every_report_has_are_refused(metric, copied):
    path = checkpoint_path(copied)
    content = content_of(path)
    for report in content["run"]["reports"]:
        del report["metrics"][metric]
    write(path, content)
    assert "reports have no loss, or not the task's metric" in refusal(copied)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("shape", lambda tensor: tensor[..., :-1].clone()),
        ("shape", lambda tensor: tensor.flatten()[:, None]),
        ("torch.float64", lambda tensor: tensor.double()),
        ("torch.float16", lambda tensor: tensor.half()),
        ("torch.int64", lambda tensor: tensor.long()),
        ("plain", lambda tensor: tensor.to_sparse()),
        ("plain", lambda tensor: tensor.to("meta")),
        ("kind", lambda tensor: tensor.tolist()),
    ],
)
@pytest.mark.parametrize(
    "place",
    [("model", "embedding.weight"), ("optimizer", "state", 1, "exp_avg")],
    ids=lambda place: place[0],
)
def test_tensors_of_another_shape_dtype_or_layout_are_refused_by_name(place, what, change, copied):
    path = checkpoint_path(copied)
    content = content_of(path)

    def changed(holder, key):
        holder[key] = change(holder[key])

    write(path, replaced(content, ("run", *place), changed))
    sentence = refusal(copied)
    assert what in sentence
    assert place[-1] in sentence


def test_an_optimizers_hyperparameters_are_the_plans(copied):
    path = checkpoint_path(copied)
    content = content_of(path)
    content["run"]["optimizer"]["param_groups"][0]["betas"] = ("no", "numbers")
    write(path, content)
    with Session.resume(copied) as session:
        assert session.run.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
        next(session.run.steps(session.recorder))


# --- older ones ---


def _older_run(planned, path, *, step=4):
    """Write trace and checkpoint as an older lsmooth did: no name of the run, no checksum, the suffix left out."""
    plan, data = planned
    begun = plan.start(data)
    with lsmooth.Recorder(begun.problem.model, begun.optimizer, path, seed=plan.seed, **RECORDING) as recorder:
        for _ in itertools.islice(begun.steps(recorder), step):
            pass
        content = {
            "format": "lsmooth-checkpoint",
            "version": 1,
            "plan": plan.__dict__,
            "run": begun.state_dict(),
            "recorder": recorder.state_dict(),
            "recording": RECORDING,
            "ranks": [],
        }
        write(path.with_suffix(".checkpoint.pt"), content, checksum=False)
    return begun


def test_a_checkpoint_of_an_older_lsmooth_is_resumed_with_a_warning(planned, tmp_path):
    path = tmp_path / "run.h5"
    begun = _older_run(planned, path)
    with pytest.warns(UserWarning, match=r"run\.checkpoint\.pt is from an older lsmooth and has no checksum"):
        session = Session.resume(path)
    with session:
        assert session.run.step == 4
        assert all(torch.equal(*pair) for pair in zip(session.run._parameters, begun._parameters, strict=True))
        session.save()
    # From now on it is one of today's.
    assert load_checkpoint(checkpoint_path(path)).run["position"]["step"] == 4


def test_an_older_checkpoint_goes_with_no_trace_of_today(planned, copied, tmp_path):
    _older_run(planned, tmp_path / "other.h5")
    checkpoint_path(copied).unlink()
    (tmp_path / "other.checkpoint.pt").rename(tmp_path / "run.checkpoint.pt")
    assert "is of another run than" in refusal(copied)


def test_a_newer_checkpoint_asks_for_an_update(copied):
    path = checkpoint_path(copied)
    write(path, content_of(path) | {"version": 3})
    assert "update lsmooth" in refusal(copied)
