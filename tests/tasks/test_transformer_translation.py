"""The translation model of Figures 1(b) and 3."""

import gzip
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from lsmooth import tasks
from lsmooth.errors import DataError
from lsmooth.tasks.transformer_translation import (
    END,
    PAD,
    START,
    UNKNOWN,
    TranslationSettings,
    TranslationTransformer,
    noam,
    words_of,
)

TINY = {"batch_size": 16, "epochs": 2, "width": 16, "heads": 2, "feed_forward": 24, "layers": 2, "warmup": 100}


@pytest.fixture(scope="module")
def task():
    return tasks.get("transformer-translation")


@pytest.fixture(scope="module")
def stand_in(task):
    return task.find_data(None)


@pytest.fixture(scope="module")
def data(task, tmp_path_factory):
    return task.find_data(str(write_multi30k(tmp_path_factory.mktemp("multi30k"))))


def write_multi30k(folder, valid="val", test="test_2016_flickr", suffix=""):
    """Write files in Multi30k's form: one sentence a line, aligned."""
    rng = np.random.default_rng(0)
    german = ["Ein", "Mann", "fährt", "auf", "der", "Straße", "rote", "U-Bahn"]
    english = ["A", "man", "rides", "on", "the", "street", "red", "don't"]
    for stem, lines in (("train", 90), (valid, 10), (test, 12)):
        rows = [rng.integers(0, 8, rng.integers(3, 12)) for _ in range(lines)]
        for language, words in (("de", german), ("en", english)):
            text = "".join(" ".join(words[i] for i in row) + ".\n" for row in rows).encode()
            (folder / f"{stem}.{language}{suffix}").write_bytes(gzip.compress(text) if suffix else text)
    return folder


# --- model ---


def test_parameter_count_at_the_papers_sizes():
    vocabulary = 9_000
    with torch.device("meta"):
        model = TranslationTransformer(vocabulary, TranslationSettings())
    attention, norm = 4 * (512 * 512 + 512), 2 * 512
    feed_forward = 512 * 2048 + 2048 + 2048 * 512 + 512
    encoder = 6 * (attention + feed_forward + 2 * norm) + norm
    decoder = 6 * (2 * attention + feed_forward + 3 * norm) + norm
    # One matrix embeds both languages and projects.
    expected = encoder + decoder + vocabulary * 512
    assert sum(p.numel() for p in model.parameters()) == expected == 44_140_544 + 512 * vocabulary


def test_output_shape():
    model = TranslationTransformer(50, TranslationSettings(**TINY))
    source, target = torch.randint(4, 50, (3, 7)), torch.randint(4, 50, (3, 5))
    assert model(source, target).shape == (3, 5, 50)


def test_one_matrix_embeds_and_projects():
    torch.manual_seed(0)
    model = TranslationTransformer(50, TranslationSettings(**TINY)).eval()
    source, target = torch.randint(4, 50, (3, 7)), torch.randint(4, 50, (3, 5))
    seen = []
    model.transformer.register_forward_hook(lambda module, args, output: seen.append((args, output)))
    logits = model(source, target)
    (embedded_source, embedded_target), hidden = seen[0]
    torch.testing.assert_close(logits, hidden @ model.embedding.weight.T)
    # Positions are the same in both; without them, 4 = sqrt(16) times the rows of the same matrix are left.
    difference = embedded_source[:, :5] - embedded_target
    expected = 4 * (model.embedding.weight[source[:, :5]] - model.embedding.weight[target])
    torch.testing.assert_close(difference, expected)


def test_no_target_word_sees_those_after_it_but_all_see_the_whole_source():
    torch.manual_seed(0)
    model = TranslationTransformer(50, TranslationSettings(**TINY)).eval()
    source, target = torch.randint(4, 50, (2, 6)), torch.randint(4, 50, (2, 8))
    before = model(source, target)
    later = target.clone()
    later[:, 5:] = (later[:, 5:] - 3) % 46 + 4
    after = model(source, later)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])
    other = source.clone()
    other[:, -1] = (other[:, -1] - 3) % 46 + 4
    assert not torch.isclose(before[:, 0], model(other, target)[:, 0]).all(dim=1).any()


@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(training):
    torch.manual_seed(0)
    model = TranslationTransformer(50, TranslationSettings(**{**TINY, "dropout": 0.0})).train(training)
    source, target = torch.randint(4, 50, (2, 6)), torch.randint(4, 50, (2, 5))
    with torch.set_grad_enabled(training):
        plain = model(source, target)
        padded = model(functional.pad(source, (0, 3)), functional.pad(target, (0, 2)))
    torch.testing.assert_close(plain, padded[:, :5])


def test_noam_schedule():
    rates = [noam(step, 512, 4000) for step in range(20_000)]
    assert rates[0] == pytest.approx(512**-0.5 * 4000**-1.5)
    assert max(range(20_000), key=rates.__getitem__) == 3999
    assert rates[3999] == pytest.approx((512 * 4000) ** -0.5)
    assert rates[15_999] == pytest.approx(rates[3999] / 2)
    assert rates[1999] == pytest.approx(rates[3999] / 2)


# --- data ---


def test_words():
    assert words_of("Zwei Männer, müde und groß.") == ["zwei", "männer", ",", "müde", "und", "groß", "."]
    assert words_of("A U-Bahn isn't 3.") == ["a", "u", "-", "bahn", "isn", "'", "t", "3", "."]


@pytest.mark.parametrize(
    "names",
    [{}, {"suffix": ".gz"}, {"valid": "valid", "test": "test2016"}, {"test": "test"}],
    ids=["plain", "gzip", "2016", "test"],
)
def test_multi30k_files(task, tmp_path, names):
    data = task.find_data(str(write_multi30k(tmp_path, **names)))
    assert (len(data.train.source), len(data.valid.source), len(data.test.source)) == (90, 10, 12)
    assert not data.stand_in
    for pairs in (data.train, data.valid, data.test):
        for words, lengths in ((pairs.source, pairs.source_lengths), (pairs.target, pairs.target_lengths)):
            for row, length in zip(words.tolist(), lengths.tolist(), strict=True):
                assert row[0] == START
                assert row[length - 1] == END
                assert set(row[length:]) <= {PAD}
                assert not {PAD, START, END} & set(row[1 : length - 1])
    # Both languages are in one vocabulary.
    assert {"straße", "street", ".", "'"} < set(data.vocabulary)
    assert data.vocabulary[:4] == ("<pad>", "<unk>", "<s>", "</s>")


def test_rare_words_become_unknown(task, tmp_path):
    write_multi30k(tmp_path)
    with (tmp_path / "train.de").open("a") as german, (tmp_path / "train.en").open("a") as english:
        german.write("selten selten Ein\n")
        english.write("often often often\n")
    data = task.find_data(str(tmp_path))
    assert "selten" not in data.vocabulary
    assert data.train.source[-1, 1:3].tolist() == [UNKNOWN, UNKNOWN]
    assert data.train.target[-1, 1].item() == data.vocabulary.index("often")


def test_missing_files_are_named(task, tmp_path):
    with pytest.raises(DataError, match=r"no train sentences; looked for train\.de, train\.en, val\.de"):
        task.find_data(str(tmp_path))
    with pytest.raises(DataError, match="There is no folder"):
        task.find_data(str(tmp_path / "nowhere"))


def test_languages_of_different_length_are_refused(task, tmp_path):
    write_multi30k(tmp_path)
    with (tmp_path / "val.en").open("a") as file:
        file.write("one more\n")
    with pytest.raises(DataError, match=r"val\.de has 10 lines and .*val\.en has 11"):
        task.find_data(str(tmp_path))


def test_a_torn_gzip_file_is_refused(task, tmp_path):
    write_multi30k(tmp_path, suffix=".gz")
    path = tmp_path / "train.de.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train\.de\.gz is not a whole gzip file"):
        task.find_data(str(tmp_path))


def test_hub_parquet(task, tmp_path):
    datasets = pytest.importorskip("datasets")
    for split in ("train", "validation", "test"):
        rows = datasets.Dataset.from_dict({"en": ["A dog runs."] * 4, "de": ["Ein Hund läuft."] * 4})
        rows.to_parquet(str(tmp_path / f"{split}-00000-of-00001.parquet"))
    data = task.find_data(f"hub:{tmp_path}")
    source, target = data.train.source[0].tolist(), data.train.target[0].tolist()
    assert [data.vocabulary[i] for i in source] == ["<s>", "ein", "hund", "läuft", ".", "</s>"]
    assert [data.vocabulary[i] for i in target] == ["<s>", "a", "dog", "runs", ".", "</s>"]


def test_hub_data_in_other_languages_is_refused(task, tmp_path):
    datasets = pytest.importorskip("datasets")
    for split in ("train", "validation", "test"):
        rows = datasets.Dataset.from_dict({"en": ["A dog."], "fr": ["Un chien."]})
        rows.to_parquet(str(tmp_path / f"{split}-00000-of-00001.parquet"))
    with pytest.raises(DataError, match="no columns de and en; it has en, fr"):
        task.find_data(f"hub:{tmp_path}")


def test_stand_in_is_as_large_as_multi30k_and_tests_on_other_pairs(stand_in):
    assert stand_in.stand_in
    sizes = [len(pairs.source) for pairs in (stand_in.train, stand_in.valid, stand_in.test)]
    assert sizes == [29_000, 1_014, 1_000]
    train = {tuple(row[row != PAD].tolist()) for row in stand_in.train.source}
    test = {tuple(row[row != PAD].tolist()) for row in stand_in.test.source}
    assert len(test) == 1_000
    assert not train & test
    assert not (stand_in.test.source == UNKNOWN).any()


# --- batches ---


def test_an_epoch_is_the_same_again_and_has_every_pair_once(task, data):
    problem = task.build(TranslationSettings(**TINY), data, seed=1)
    first, again = list(problem.batches(0)), list(problem.batches(0))
    assert all(torch.equal(a.source, b.source) for a, b in zip(first, again, strict=True))
    assert len(first) == problem.steps_per_epoch == 6

    def rows(batches):
        return [tuple(row[row != PAD].tolist()) for batch in batches for row in batch.source]

    assert sorted(rows(first)) == sorted(tuple(row[row != PAD].tolist()) for row in data.train.source)
    assert rows(first) != rows(problem.batches(1))
    assert rows(first) != rows(task.build(TranslationSettings(**TINY), data, seed=2).batches(0))


def test_batches_hold_pairs_of_similar_length_and_no_needless_padding(task, stand_in):
    problem = task.build(TranslationSettings(**TINY), stand_in, seed=1)
    padding = words = 0
    for batch in itertools.islice(problem.batches(0), 50):
        assert batch.source.shape[1] == batch.source_lengths.max()
        assert batch.target.shape[1] == batch.target_lengths.max()
        padding += int((batch.target == PAD).sum())
        words += batch.target.numel()
    # In random batches it is about a third.
    assert padding / words < 0.15


# --- loss ---


def test_loss_is_a_smoothed_sum_over_tokens_and_shows_the_plain_mean(task, data):
    problem = task.build(TranslationSettings(**TINY, dropout=0.0, label_smoothing=0.2), data, seed=0)
    batch = next(iter(problem.batches(0)))
    loss, carried = problem.loss(batch, None)
    logits = problem.model(batch.source, batch.target[:, :-1])
    total = plain = tokens = 0.0
    for row, gold in zip(logits, batch.target[:, 1:], strict=True):
        for scores, word in zip(row, gold, strict=True):
            if word != PAD:
                target = torch.full_like(scores, 0.2 / len(scores))
                target[word] += 0.8
                total -= (target * scores.log_softmax(0)).sum().item()
                plain -= scores.log_softmax(0)[word].item()
                tokens += 1
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert problem.shown_loss(loss, batch, carried).item() == pytest.approx(plain / tokens, rel=1e-5)


def test_metrics_against_one_pair_at_a_time(task, data):
    problem = task.build(TranslationSettings(**TINY), data, seed=0)
    found = problem.evaluate("valid")
    problem.model.eval()
    losses, right = [], []
    for source, target in zip(data.valid.source, data.valid.target, strict=True):
        source, target = source[source != PAD][None], target[target != PAD][None]
        with torch.no_grad():
            logits = problem.model(source, target[:, :-1])[0]
        losses += functional.cross_entropy(logits, target[0, 1:], reduction="none").tolist()
        right += (logits.argmax(1) == target[0, 1:]).tolist()
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert found["accuracy"] == pytest.approx(np.mean(right))


def test_papers_settings(task):
    settings = task.settings("paper")
    assert (settings.batch_size, settings.epochs, settings.steps, settings.warmup) == (256, 400, None, 128_000)
    assert (settings.width, settings.heads, settings.feed_forward, settings.layers) == (512, 8, 2048, 6)
    assert (settings.dropout, settings.label_smoothing) == (0.1, 0.1)
    expected = {
        "generalized-signsgd": {"lr": 10, "weight_decay": 0.1, "betas": (0.9, 0.98), "eps": 1e-9},
        "adam": {"lr": 10, "weight_decay": 0.1, "betas": (0.9, 0.98), "eps": 1e-9},
        "sgd-momentum": {"lr": 1, "weight_decay": 1},
        "sgd-clip-grad": {"lr": 10, "max_norm": 1, "weight_decay": 1},
        "sgd-clip-momentum": {"lr": 1, "max_norm": 1, "weight_decay": 1},
        "sgd-momentum-normalized": {"lr": 10_000, "weight_decay": 1},
    }
    for optimizer, values in expected.items():
        assert task.optimizer_defaults(optimizer, "paper").items() >= values.items()


def test_learning_rate_is_the_schedules(task, data):
    problem = task.build(TranslationSettings(**TINY), data, seed=0)
    batch = next(iter(problem.batches(0)))
    assert problem.lr_factor(99, 3, batch) == pytest.approx((16 * 100) ** -0.5)


def test_training_gets_below_unigram_entropy(task, stand_in):
    settings = TranslationSettings(
        batch_size=32, epochs=1, width=64, heads=2, feed_forward=64, layers=1, dropout=0.0, warmup=3_000
    )
    problem = task.build(settings, stand_in, seed=0)
    assert problem.baseline().name == "unigram entropy"
    defaults = {**task.optimizer_defaults("adam", "small"), "lr": 20.0}
    optimizer = torch.optim.Adam(problem.model.parameters(), **defaults)
    losses = []
    for step, batch in enumerate(itertools.islice(problem.batches(0), 120)):
        optimizer.param_groups[0]["lr"] = defaults["lr"] * problem.lr_factor(step, 0, batch)
        loss, carried = problem.loss(batch, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(problem.shown_loss(loss, batch, carried).item())
    assert np.mean(losses[-20:]) < problem.baseline().loss
