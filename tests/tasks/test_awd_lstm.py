"""AWD-LSTM and Penn Treebank: Figure 5 and Table 1's right half."""

import copy
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional

import lsmooth
from lsmooth import tasks
from lsmooth.errors import DataError
from lsmooth.tasks.awd_lstm import (
    AWDLSTM,
    AWDLSTMSettings,
    WeightDropLSTM,
    cpu_has_bfloat16_lstm,
    draw_lengths,
    locked_dropout,
)
from lsmooth.tasks.plan import make_plan

TINY = {"batch_size": 4, "embedding": 8, "hidden": 12, "bptt": 10}
NO_DROPOUT = dict.fromkeys(("dropout", "dropout_hidden", "dropout_input", "dropout_embedding", "weight_drop"), 0.0)


@pytest.fixture(scope="module")
def task():
    return tasks.get("awd-lstm")


@pytest.fixture(scope="module")
def data(task, tmp_path_factory):
    return task.find_data(str(write_ptb(tmp_path_factory.mktemp("ptb"))))


def write_ptb(folder):
    """Write a small corpus in the form of the Penn Treebank files: a blank at both ends of each line, `<unk>`, `N`."""
    rng = np.random.default_rng(0)
    words = ["the", "market", "fell", "N", "points", "<unk>", "said", "mr.", "u.s.", "'s"]
    for split, lines in (("train", 80), ("valid", 20), ("test", 20)):
        text = "".join(f" {' '.join(rng.choice(words, rng.integers(3, 12)))} \n" for _ in range(lines))
        (folder / f"ptb.{split}.txt").write_text(text)
    return folder


# --- model ---


def test_parameter_count_at_the_papers_sizes():
    with torch.device("meta"):
        model = AWDLSTM(10_000, AWDLSTMSettings())
    # Input, hidden and two bias vectors of the four gates of each layer; the embedding decodes too, with a bias.
    layers = [(400, 1150), (1150, 1150), (1150, 400)]
    expected = sum(4 * units * (inputs + units + 2) for inputs, units in layers) + 10_000 * 400 + 10_000
    assert sum(p.numel() for p in model.parameters()) == expected == 24_221_600


def test_output_shape():
    model = AWDLSTM(50, AWDLSTMSettings(**TINY))
    logits, state, output, dropped = model(torch.zeros(4, 7, dtype=torch.long), model.start(4))
    assert logits.shape == (4, 7, 50)
    assert output.shape == dropped.shape == (4, 7, 8)
    assert [tuple(h.shape) for h, _ in state] == [(1, 4, 12), (1, 4, 12), (1, 4, 8)]


def _unrolled(layer, weight_hh, x, h, c):
    """Apply an LSTM's equations word by word, with these hidden-to-hidden weights at each."""
    outputs = []
    for word in x.unbind(1):
        gates = word @ layer.weight_ih.T + layer.bias_ih + h @ weight_hh.T + layer.bias_hh
        i, f, g, o = gates.chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def test_weight_drop_changes_between_batches_and_not_within_one():
    torch.manual_seed(0)
    layer = WeightDropLSTM(5, 6, weight_drop=0.5)
    x, state = torch.randn(3, 9, 5), (torch.randn(1, 3, 6), torch.randn(1, 3, 6))
    torch.manual_seed(1)
    first, _ = layer(x, state)
    second, _ = layer(x, state)
    assert not torch.allclose(first, second)
    torch.manual_seed(1)
    weights = functional.dropout(layer.weight_hh, 0.5)
    assert 0.2 < (weights == 0).double().mean() < 0.8
    torch.testing.assert_close(first, _unrolled(layer, weights, x, state[0][0], state[1][0]))


def test_only_hidden_to_hidden_weights_are_dropped():
    torch.manual_seed(0)
    layer = WeightDropLSTM(20, 30, weight_drop=0.5)
    output, _ = layer(torch.randn(8, 9, 20), (torch.zeros(1, 8, 30), torch.zeros(1, 8, 30)))
    output.square().sum().backward()
    assert 0.45 < (layer.weight_hh.grad == 0).double().mean() < 0.55
    assert (layer.weight_ih.grad != 0).all()


def test_without_weight_drop_it_is_an_lstm():
    torch.manual_seed(0)
    layer, reference = WeightDropLSTM(5, 6, weight_drop=0.5).eval(), nn.LSTM(5, 6, batch_first=True)
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(reference, f"{name}_l0").copy_(getattr(layer, name))
    x, state = torch.randn(3, 9, 5), (torch.randn(1, 3, 6), torch.randn(1, 3, 6))
    ours, theirs = layer(x, state), reference(x, state)
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


def test_locked_dropout_is_the_same_along_a_sequence():
    torch.manual_seed(0)
    dropped = locked_dropout(torch.ones(6, 11, 40), 0.4, training=True)
    assert (dropped == dropped[:, :1]).all()
    assert not (dropped[0] == dropped[1]).all()
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / 0.6]))
    assert 0.3 < (dropped[:, 0] == 0).double().mean() < 0.5
    x = torch.randn(2, 3, 4)
    assert locked_dropout(x, 0.4, training=False) is x


def test_embedding_dropout_takes_whole_words_from_a_batch():
    torch.manual_seed(0)
    settings = AWDLSTMSettings(**{**TINY, **NO_DROPOUT, "dropout_embedding": 0.5, "layers": 1})
    model = AWDLSTM(40, settings)
    words = torch.arange(40).repeat(4, 1)
    logits, *_ = model(words, model.start(4))
    logits.sum().backward()
    # The embedding gets the gradient of decoding in any case; take its part as an input.
    seen = []
    hook = model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(words, model.start(4))
    hook.remove()
    missing = (seen[0] == 0).all(dim=2)
    assert 0.25 < missing.double().mean() < 0.75
    assert (missing == missing[0]).all()
    kept = ~missing[0]
    torch.testing.assert_close(seen[0][0, kept], model.embedding.weight[kept] * 2)


def test_embedding_decodes():
    model = AWDLSTM(30, AWDLSTMSettings(**TINY, **NO_DROPOUT))
    logits, _, output, _ = model(torch.randint(30, (4, 5)), model.start(4))
    torch.testing.assert_close(logits, output @ model.embedding.weight.T + model.bias)


# --- data ---


def test_penn_treebank_files(data):
    assert not data.stand_in
    assert set(data.vocabulary) == {
        "<unk>", "<eos>", "the", "market", "fell", "N", "points", "said", "mr.", "u.s.", "'s"
    }  # fmt: skip
    lines = int((data.train == data.vocabulary.index("<eos>")).sum())
    assert lines == 80


def test_missing_files_are_named(task, tmp_path):
    with pytest.raises(DataError, match=r"ptb\.train\.txt, ptb\.valid\.txt and ptb\.test\.txt"):
        task.find_data(str(tmp_path))


def test_hub_parquet(task, tmp_path):
    datasets = pytest.importorskip("datasets")
    for split, text in (("train", "a b <unk> N"), ("validation", "b a"), ("test", "a")):
        rows = datasets.Dataset.from_dict({"sentence": [text] * 5})
        rows.to_parquet(str(tmp_path / f"{split}-00000-of-00001.parquet"))
    data = task.find_data(f"hub:{tmp_path}")
    assert [data.vocabulary[i] for i in data.train[:5]] == ["a", "b", "<unk>", "N", "<eos>"]
    assert (len(data.train), len(data.valid), len(data.test)) == (25, 15, 10)


def test_hub_is_asked_for_its_conversion_of_penn_treebank(task, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, configuration, revision):
        asked.append((name, configuration, revision))
        return {split: datasets.Dataset.from_dict({"sentence": ["a b"]}) for split in ("train", "validation")}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(task.find_data("hub").train) == 3
    assert asked == [("ptb-text-only/ptb_text_only", None, "refs/convert/parquet")]


# --- batches ---


def test_lengths_vary_as_in_the_source():
    lengths = np.array(draw_lengths(200_000, 70, np.random.default_rng(0)))
    halves = lengths < 52
    assert 0.03 < halves.mean() < 0.07
    assert abs(lengths[~halves].mean() - 69.5) < 1
    assert abs(lengths[~halves].std() - 5) < 0.5
    assert abs(lengths[halves].mean() - 34.5) < 2
    assert min(draw_lengths(200_000, 6, np.random.default_rng(0))) == 5


def test_an_epoch_reads_the_text_in_order(task, data):
    problem = task.build(AWDLSTMSettings(**TINY), data, seed=3)
    batches = list(problem.batches(0))
    words = torch.cat([batch.words for batch in batches], dim=1)
    assert torch.equal(words, problem.text[:, : words.shape[1]])
    assert words.shape[1] >= problem.text.shape[1] - 2
    for batch in batches:
        assert batch.words.shape == batch.following.shape
        assert batch.words.shape[1] >= 2
    following = torch.cat([batch.following for batch in batches], dim=1)
    assert torch.equal(following, problem.text[:, 1 : 1 + words.shape[1]])
    drawn = [batch.drawn for batch in batches]
    assert drawn == [batch.drawn for batch in problem.batches(0)]
    assert drawn != [batch.drawn for batch in problem.batches(1)]
    assert problem.steps_per_epoch == len(batches)


def test_learning_rate_and_clipping_follow_the_length(task, data):
    problem = task.build(AWDLSTMSettings(**TINY), data, seed=3)
    for step, batch in enumerate(problem.batches(0)):
        assert problem.lr_factor(step, 0, batch) == batch.drawn / 10
        assert problem.clip_factor(step, 0, batch) == batch.drawn / 10


# --- loss ---


def test_loss_is_cross_entropy_and_penalties_and_shows_the_former(task, data):
    problem = task.build(AWDLSTMSettings(**TINY, alpha=3.0, beta=7.0), data, seed=0)
    batch = next(iter(problem.batches(0)))
    torch.manual_seed(5)
    loss, carried = problem.loss(batch, None)
    torch.manual_seed(5)
    logits, _, output, dropped = problem.model(batch.words, problem.model.start(4))
    plain = nn.CrossEntropyLoss()(logits.reshape(-1, logits.shape[2]), batch.following.reshape(-1))
    penalty = 3 * (dropped**2).mean() + 7 * ((output[:, 1:] - output[:, :-1]) ** 2).mean()
    torch.testing.assert_close(loss, plain + penalty)
    assert penalty > 0
    torch.testing.assert_close(problem.shown_loss(loss, batch, carried), plain)


def test_state_goes_on_from_batch_to_batch(task, data):
    problem = task.build(AWDLSTMSettings(**TINY, **NO_DROPOUT), data, seed=0)
    first, second = list(problem.batches(0))[:2]
    _, carried = problem.loss(first, None)
    _, after = problem.loss(second, carried)
    both = torch.cat([first.words, second.words], dim=1)
    _, state, _, _ = problem.model(both, problem.model.start(4))
    torch.testing.assert_close(after[0], state)


def test_compiled_it_is_compiled_for_one_length_and_then_for_any(data, tmp_path, monkeypatch):
    counter = CompileCounterWithBackend("aot_eager")
    compile_as_usual = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda model: compile_as_usual(model, backend=counter))
    plan, _ = make_plan("awd-lstm", changes=TINY | {"steps": 12}, compile=True)
    run = plan.start(data)
    lengths = {batch.words.shape[1] for batch in list(run.problem.batches(0))[:11]}
    with lsmooth.Recorder(run.model, run.optimizer, tmp_path / "run.h5", every=4) as recorder:
        # The last step is followed by an evaluation, which is compiled too.
        compiled = [counter.frame_count for step in run.steps(recorder)][:-1]
    assert len(lengths) > 5
    # What comes before the recurrent layers and what comes after.
    assert compiled == [2] + [4] * 10
    # Not the layers: torch.lstm would be written out word by word.
    called = {node.target for graph in counter.graphs for node in graph.graph.nodes}
    assert functional.linear in called
    assert torch.lstm not in called
    with lsmooth.Trace(tmp_path / "run.h5") as trace:
        assert trace.status_counts() == {"measured": 3}


def test_compiled_a_loss_has_the_same_gradient_again(task, data, monkeypatch):
    compile_as_usual = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda model: compile_as_usual(model, backend="aot_eager"))
    problem = task.build(AWDLSTMSettings(**TINY), data, seed=0)
    problem.compile()
    batch = next(iter(problem.batches(0)))
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        problem.model.zero_grad()
        problem.loss(batch, None)[0].backward()
        found.append(nn.utils.parameters_to_vector(p.grad for p in problem.model.parameters()))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_metrics_against_the_whole_text_at_once(task, data):
    problem = task.build(AWDLSTMSettings(**TINY), data, seed=0)
    found = problem.evaluate("valid")
    text = data.streams("valid", 4, torch.device("cpu"))
    problem.model.eval()
    with torch.no_grad():
        logits, *_ = problem.model(text[:, :-1], problem.model.start(4))
    loss = functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert found["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-5)


def short_run(data, nonmono):
    """A run of 12 steps, with a report after each, at a learning rate that makes validation losses rise and fall."""
    changes = {**TINY, "steps": 12, "report_every": 1, "nonmono": nonmono, "lr": 20.0}
    plan, _ = make_plan("awd-lstm", optimizer="sgd", preset="paper", changes=changes)
    return plan.start(data)


def reached(run):
    """Train to the end, and return the weights after each step."""
    return [nn.utils.parameters_to_vector(run.model.parameters()).detach() for _ in run.steps()]


def test_late_reports_are_those_of_the_mean_weights_and_training_is_none_the_wiser(task, data):
    # A run's random numbers begin where it is built.
    averaged = short_run(data, 1)
    weights = reached(averaged)
    plain = short_run(data, None)
    as_without = reached(plain)
    assert all(torch.equal(a, b) for a, b in zip(weights, as_without, strict=True))
    losses, trained = ([report.metrics["loss"] for report in run.reports] for run in (averaged, plain))
    start = next(t for t in range(2, 12) if trained[t] > min(trained[: t - 1]))
    assert start < 9
    assert losses[: start + 1] == trained[: start + 1]
    twin = task.build(AWDLSTMSettings(**TINY), data, seed=0)
    for last in range(start + 1, 12):
        mean = torch.stack(weights[start + 1 : last + 1]).double().mean(0).float()
        nn.utils.vector_to_parameters(mean, twin.model.parameters())
        assert losses[last] == pytest.approx(twin.evaluate("valid")["loss"], rel=1e-5)


def test_a_resumed_run_averages_on(data):
    whole = short_run(data, 1)
    reached(whole)
    first = short_run(data, 1)
    next(step for step in first.steps() if step == 10)
    state = copy.deepcopy(first.state_dict())
    second = short_run(data, 1)
    second.load_state_dict(state)
    reached(second)
    assert whole.problem.state_dict()["averaging"]["steps"] > 2
    assert [report.metrics for report in second.reports] == [report.metrics for report in whole.reports]


def test_papers_settings(task):
    settings = task.settings("paper")
    assert settings.nonmono == 5
    assert (settings.batch_size, settings.epochs, settings.bptt, settings.steps) == (40, 750, 70, None)
    assert (settings.embedding, settings.hidden, settings.layers) == (400, 1150, 3)
    assert (settings.dropout, settings.dropout_hidden, settings.dropout_input) == (0.4, 0.25, 0.4)
    assert (settings.dropout_embedding, settings.weight_drop, settings.alpha, settings.beta) == (0.1, 0.5, 2, 1)
    expected = {
        "generalized-signsgd": {"lr": 1e-3, "weight_decay": 1.2e-6},
        "adam": {"lr": 2e-3, "weight_decay": 5e-6},
        "sgd-momentum": {"lr": 1, "weight_decay": 1e-5},
        "sgd-clip-grad": {"lr": 50, "max_norm": 10, "weight_decay": 1.2e-6},
        "sgd-clip-momentum": {"lr": 20, "max_norm": 2.5, "weight_decay": 1.2e-6},
        "sgd-momentum-normalized": {"lr": 2, "weight_decay": 5e-6},
    }
    for optimizer, values in expected.items():
        assert task.optimizer_defaults(optimizer, "paper").items() >= values.items()


def test_training_gets_below_unigram_entropy(task):
    corpus = task.find_data(None)
    settings = AWDLSTMSettings(batch_size=20, embedding=50, hidden=80, bptt=20)
    problem = task.build(settings, corpus, seed=0)
    assert problem.baseline().name == "unigram entropy"
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=5e-3)
    losses, carried = [], None
    for step, batch in enumerate(problem.batches(0)):
        if step == 150:
            break
        loss, carried = problem.loss(batch, carried)
        carried = tuple((h.detach(), c.detach()) for h, c in carried[0]), carried[1].detach()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(problem.shown_loss(loss, batch, carried).item())
    assert np.mean(losses[-40:]) < problem.baseline().loss


# --- mixed precision on CPUs without a bfloat16 LSTM ---

_STEPS_ON_A_LOWER_CPU = """
import torch
from lsmooth.tasks.awd_lstm import cpu_has_bfloat16_lstm
from lsmooth.tasks.plan import make_plan

print(cpu_has_bfloat16_lstm())
plan, data = make_plan("awd-lstm", changes={"batch_size": 4, "embedding": 8, "hidden": 12, "bptt": 10}, amp=True)
run = plan.start(data)
dtypes = set()
for layer in run.problem.model.layers:
    layer.register_forward_hook(lambda module, inputs, output: dtypes.add(str(output[0].dtype)))
steps = run.steps()
next(steps), next(steps)
print(*dtypes)
print(run.loss.item())
# What a checkpoint from a CPU with that LSTM brings along.
state = run.state_dict()
state["carried"] = (tuple((h.bfloat16(), c.bfloat16()) for h, c in state["carried"][0]), state["carried"][1])
run.load_state_dict(state)
next(steps)
"""


def _steps_on(isa):
    done = subprocess.run(
        [sys.executable, "-c", _STEPS_ON_A_LOWER_CPU],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or platform.machine() not in ("x86_64", "AMD64"),
    reason="oneDNN heeds the variable on x86 alone",
)
@pytest.mark.parametrize("isa", ["SSE41", "AVX2"])
def test_layers_compute_in_float32_on_a_cpu_without_a_bfloat16_lstm(isa):
    has_it, dtypes, loss = _steps_on(isa)
    assert has_it == "False", "the variable has to imitate such a CPU"
    assert dtypes == "torch.float32"
    # Two steps from the start: the entropy of a uniform guess among 1,779 words.
    assert float(loss) == pytest.approx(np.log(1_779), abs=0.1)


def test_layers_compute_in_bfloat16_on_a_cpu_that_can():
    if not cpu_has_bfloat16_lstm():
        pytest.skip("this CPU has no bfloat16 LSTM")
    layer = WeightDropLSTM(3, 5, 0.0)
    state = (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = layer(torch.randn(2, 4, 3), state)
    assert output.dtype == torch.bfloat16
