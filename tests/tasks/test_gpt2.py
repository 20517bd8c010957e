"""GPT-2 on WikiText-103: Figure 2."""

import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional

from lsmooth import tasks
from lsmooth.cli import main
from lsmooth.errors import DataError
from lsmooth.tasks import gpt2 as module
from lsmooth.tasks.gpt2 import GPT2Settings, gpt2

pytest.importorskip("transformers")

TINY = {"batch_size": 4, "epochs": 3, "layers": 2, "width": 16, "heads": 2, "feed_forward": 24, "context": 12}


@pytest.fixture(scope="module")
def task():
    return tasks.get("gpt2")


@pytest.fixture(scope="module")
def data(task, tmp_path_factory):
    return task.find_data(str(write_wikitext(tmp_path_factory.mktemp("wikitext"))))


def write_wikitext(folder, suffix="tokens"):
    """Write a small corpus in WikiText's form: headings in equals signs, empty lines, `@-@` and `<unk>`."""
    rng = np.random.default_rng(0)
    words = ["The", "playing", "<unk>", "@-@", "of", ",", "1990", "."]
    for split, count in (("train", 60), ("valid", 12), ("test", 12)):
        lines = [f" = Heading {i} = \n \n {' '.join(rng.choice(words, 12))} \n" for i in range(count)]
        (folder / f"wiki.{split}.{suffix}").write_text("".join(lines))
    return folder


def write_bert_vocabulary(folder):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "The", "play", "##ing", "of", ",", ".", "@", "-", "=", "1"]
    (folder / "vocab.txt").write_text("\n".join([*tokens, "##9", "##0", "Head"]) + "\n")
    return [*tokens, "##9", "##0", "Head"]


# --- model ---


def test_parameter_count_and_bytes_at_the_papers_sizes():
    with torch.device("meta"):
        model = gpt2(28_996, GPT2Settings())
    width, inner = 410, 2100
    block = 2 * 2 * width + 3 * (width**2 + width) + (width**2 + width) + width * inner + inner + inner * width + width
    # The embedding is the output matrix too.
    expected = 28_996 * width + 256 * width + 16 * block + 2 * width
    assert sum(p.numel() for p in model.parameters()) == expected == 50_397_180
    assert sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6 == pytest.approx(201.6, abs=0.05)


def test_output_shape_and_tied_weights():
    model = gpt2(50, GPT2Settings(**TINY))
    assert model(input_ids=torch.zeros(3, 12, dtype=torch.long)).logits.shape == (3, 12, 50)
    assert model.lm_head.weight is model.transformer.wte.weight
    # Learned positions, as many as the context has.
    assert model.transformer.wpe.weight.shape == (12, 16)
    assert model.training


def test_no_token_sees_those_after_it():
    torch.manual_seed(0)
    model = gpt2(50, GPT2Settings(**TINY)).eval()
    tokens = torch.randint(50, (2, 12))
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 50
    before, after = model(input_ids=tokens).logits, model(input_ids=changed).logits
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_layer_norms_come_before_attention_and_feed_forward():
    torch.manual_seed(0)
    model = gpt2(50, GPT2Settings(**TINY)).eval()
    with torch.no_grad():
        for block in model.transformer.h:
            for layer in (block.attn.c_proj, block.mlp.c_proj):
                layer.weight.zero_()
                layer.bias.zero_()
    # Blocks that add nothing leave embeddings as they are; with norms after the sums they would not.
    tokens = torch.randint(50, (2, 12))
    embedded = model.transformer.wte(tokens) + model.transformer.wpe(torch.arange(12))
    hidden = model.transformer.ln_f(embedded)
    torch.testing.assert_close(model(input_ids=tokens).logits, hidden @ model.transformer.wte.weight.T)


# --- data ---


def test_by_words_the_most_frequent_are_kept(task, tmp_path, monkeypatch):
    write_wikitext(tmp_path)
    monkeypatch.setattr(module, "VOCABULARY", 6)
    data = task.find_data(str(tmp_path))
    assert data.vocabulary[:3] == ("<unk>", "<eos>", "=")
    assert len(data.vocabulary) == 6
    assert not data.stand_in


@pytest.mark.parametrize("suffix", ["tokens", "raw"])
def test_with_berts_vocabulary_text_is_cut_into_word_pieces(task, tmp_path, suffix):
    write_wikitext(tmp_path, suffix)
    tokens = write_bert_vocabulary(tmp_path)
    (tmp_path / f"wiki.valid.{suffix}").write_text(" = Heading 1 = \n \n The playing <unk> @-@ 1990 xyz . \n")
    data = task.find_data(str(tmp_path))
    assert list(data.vocabulary) == tokens
    expected = "= Head ##ing 1 = [SEP] [SEP] The play ##ing [UNK] @ - @ 1 ##9 ##9 ##0 [UNK] . [SEP]"
    assert [tokens[i] for i in data.valid] == expected.split()


def test_a_foreign_vocabulary_is_refused(task, tmp_path):
    write_wikitext(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"vocab\.txt is not a BERT vocabulary"):
        task.find_data(str(tmp_path))


@pytest.mark.parametrize("pieces", [False, True])
def test_hub_parquet(task, tmp_path, pieces):
    datasets = pytest.importorskip("datasets")
    for split in ("train", "validation", "test"):
        rows = datasets.Dataset.from_dict({"text": ["", " The playing of \n"] * 3})
        rows.to_parquet(str(tmp_path / f"{split}-00000-of-00001.parquet"))
    if pieces:
        write_bert_vocabulary(tmp_path)
    data = task.find_data(f"hub:{tmp_path}")
    expected = (
        ["[SEP]", "The", "play", "##ing", "of", "[SEP]"] if pieces else ["<eos>", "The", "playing", "of", "<eos>"]
    )
    assert [data.vocabulary[i] for i in data.train[: len(expected)]] == expected


def test_hub_fetches_berts_tokenizer_with_the_data(task, tmp_path, monkeypatch):
    datasets, hub = pytest.importorskip("datasets"), pytest.importorskip("huggingface_hub")
    asked = []

    def load_dataset(name, configuration, revision):
        asked.append((name, configuration))
        return {split: datasets.Dataset.from_dict({"text": ["The playing"]}) for split in ("train", "validation")}

    def download(name, file):
        asked.append((name, file))
        write_bert_vocabulary(tmp_path)
        return str(tmp_path / file)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    data = task.find_data("hub")
    assert [data.vocabulary[i] for i in data.train] == ["The", "play", "##ing", "[SEP]"]
    assert set(asked) == {("Salesforce/wikitext", "wikitext-103-raw-v1"), ("google-bert/bert-base-cased", "vocab.txt")}

    def refuse(name, file):
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    with pytest.raises(DataError, match="could not be fetched \\(no route to host\\)"):
        task.find_data("hub")


# --- batches ---


def test_an_epoch_is_the_same_again_and_reads_each_window_once(task, data):
    problem = task.build(GPT2Settings(**TINY), data, seed=1)
    first, again = list(problem.batches(0)), list(problem.batches(0))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(first) == problem.steps_per_epoch == (len(data.train) - 1) // 12 // 4
    assert {batch.shape for batch in first} == {(4, 13)}
    windows = {tuple(data.train[start : start + 13].tolist()) for start in range(0, len(data.train) - 13, 12)}
    read = [tuple(row.tolist()) for batch in first for row in batch]
    assert set(read) <= windows
    assert len(set(read)) > 0.9 * len(read)
    assert not torch.equal(first[0], next(iter(problem.batches(1))))


def test_learning_rate_warms_up_linearly_and_falls_as_a_cosine(task, data):
    problem = task.build(GPT2Settings(**TINY, warmup=10, steps=110), data, seed=1)
    rates = [problem.lr_factor(step, 0, None) for step in range(110)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    expected = [0.5 * (1 + math.cos(math.pi * k / 100)) for k in range(100)]
    np.testing.assert_allclose(rates[10:], expected)
    assert rates[-1] < 0.001
    assert problem.lr_factor(500, 0, None) == 0


# --- loss ---


def test_loss_is_that_of_hugging_face(task, data):
    problem = task.build(GPT2Settings(**TINY, dropout=0.0), data, seed=1)
    batch = next(iter(problem.batches(0)))
    loss, _ = problem.loss(batch, None)
    # Their labels are shifted inside, so they are the whole window, which has to fit into one more position.
    wide = gpt2(len(data.vocabulary), GPT2Settings(**{**TINY, "context": 13}, dropout=0.0))
    state = problem.model.state_dict()
    state["transformer.wpe.weight"] = functional.pad(state["transformer.wpe.weight"], (0, 0, 0, 1))
    wide.load_state_dict(state)
    torch.testing.assert_close(loss, wide(input_ids=batch, labels=batch).loss)


def test_metrics_against_one_window_at_a_time(task, data):
    problem = task.build(GPT2Settings(**TINY), data, seed=1)
    found = problem.evaluate("valid")
    problem.model.eval()
    losses = []
    for start in range(0, len(data.valid) - 12, 12):
        words = data.valid[start : start + 13]
        with torch.no_grad():
            logits = problem.model(input_ids=words[None, :-1]).logits[0]
        losses += functional.cross_entropy(logits, words[1:], reduction="none").tolist()
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)


def test_papers_settings(task):
    settings = task.settings("paper")
    assert (settings.batch_size, settings.epochs, settings.steps, settings.max_norm) == (256, 200, None, 0.25)
    assert (settings.layers, settings.width, settings.heads, settings.feed_forward) == (16, 410, 10, 2100)
    assert (settings.context, settings.warmup) == (256, 250)
    assert task.optimizer_defaults("adam", "paper") == {"lr": 2.5e-4}
    assert module.VOCABULARY == 28_996


def test_training_gets_below_unigram_entropy(task):
    corpus = task.find_data(None)
    settings = GPT2Settings(
        batch_size=8, epochs=1, steps=200, layers=2, width=48, heads=2, feed_forward=96, context=32, dropout=0.0
    )
    problem = task.build(settings, corpus, seed=0)
    assert problem.baseline().name == "unigram entropy"
    optimizer = torch.optim.Adam(problem.model.parameters(), lr=5e-3)
    losses = []
    for batch in list(problem.batches(0))[:120]:
        loss, _ = problem.loss(batch, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-30:]) < problem.baseline().loss


def test_the_count_of_clipped_steps_is_in_the_runs_summary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    common = ["train", "gpt2", *sets, "--steps", "6", "--device", "cpu", "--every", "6"]
    tight = CliRunner().invoke(main, [*common, "--set", "max_norm=1e-6", "--trace", "tight.h5"])
    assert "Clipped the gradient to norm 1e-06 in 6 of 6 steps." in tight.output
    wide = CliRunner().invoke(main, [*common, "--set", "max_norm=1e6", "--trace", "wide.h5"])
    assert "in 0 of 6 steps." in wide.output
    none = CliRunner().invoke(main, [*common, "--set", "max_norm=none", "--trace", "none.h5"])
    assert none.exit_code == 0
    assert "Clipped" not in none.output
