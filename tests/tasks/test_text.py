"""Text for language models: what is read from which files, and how words become numbers."""

import math
from collections import Counter

import pytest
import torch

from lsmooth.errors import DataError
from lsmooth.tasks.text import encode, find_corpus

TRAIN = "the cat sat on the mat\n \nthe dog sat\n"
VALID = "the bird sat\n"
HUB = ("nowhere", None)


def words(corpus, split):
    return [corpus.vocabulary[number] for number in getattr(corpus, split)]


@pytest.mark.parametrize("names", [("wiki.train.tokens", "wiki.valid.tokens"), ("train.txt", "valid.txt")])
def test_a_folder_of_text_files(tmp_path, names):
    (tmp_path / names[0]).write_text(TRAIN)
    (tmp_path / names[1]).write_text(VALID)
    corpus = find_corpus(str(tmp_path), hub=HUB)
    assert words(corpus, "train") == [
        *["the", "cat", "sat", "on", "the", "mat", "<eos>", "<eos>", "the", "dog", "sat", "<eos>"]
    ]
    assert words(corpus, "valid") == ["the", "<unk>", "sat", "<eos>"]
    assert len(corpus.test) == 0
    assert not corpus.stand_in
    assert str(tmp_path) in corpus.origin


def test_a_folder_of_parquet_files(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    for name, text in (
        ("train-00000-of-00002", TRAIN),
        ("train-00001-of-00002", "more\n"),
        ("validation-00000", VALID),
    ):
        pandas.DataFrame({"text": text.splitlines(keepends=True)}).to_parquet(tmp_path / f"{name}.parquet")
    corpus = find_corpus(str(tmp_path), hub=HUB)
    assert words(corpus, "train")[-3:] == ["<eos>", "more", "<eos>"]
    assert words(corpus, "valid") == ["the", "<unk>", "sat", "<eos>"]


def test_a_parquet_file_that_is_none(tmp_path):
    pytest.importorskip("pyarrow")
    for name in ("train.parquet", "validation.parquet"):
        (tmp_path / name).write_text("no parquet")
    with pytest.raises(DataError, match=r"train\.parquet is not a Parquet file"):
        find_corpus(str(tmp_path), hub=HUB)


def test_missing_files_are_named(tmp_path):
    (tmp_path / "wiki.train.tokens").write_text(TRAIN)
    with pytest.raises(DataError, match=r"wiki\.valid\.tokens"):
        find_corpus(str(tmp_path), hub=HUB)
    with pytest.raises(DataError, match="no folder"):
        find_corpus(str(tmp_path / "nowhere"), hub=HUB)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00bad", b""])
def test_files_that_are_not_text_or_empty(tmp_path, content):
    (tmp_path / "train.txt").write_bytes(content)
    (tmp_path / "valid.txt").write_text(VALID)
    with pytest.raises(DataError, match=r"UTF-8|no words"):
        find_corpus(str(tmp_path), hub=HUB)


def test_the_vocabulary_is_ranked_and_cut():
    lines = {"train": lambda: ["b a a", "c a b"], "valid": lambda: ["a c"]}
    assert encode(lines, "", stand_in=False).vocabulary == ("<unk>", "<eos>", "a", "b", "c")
    cut = encode(lines, "", stand_in=False, max_words=3)
    assert cut.vocabulary == ("<unk>", "<eos>", "a")
    assert cut.train.tolist() == [0, 2, 2, 1, 0, 2, 0, 1]
    assert encode(lines, "", stand_in=False, min_count=2).vocabulary == ("<unk>", "<eos>", "a", "b")


def test_the_built_in_corpus_is_english_of_some_size():
    corpus = find_corpus(None, hub=HUB)
    assert corpus.stand_in
    assert len(corpus.train) > 80_000
    assert 1000 < len(corpus.vocabulary) < 5000
    assert {"the", "function", "(", "."} <= set(corpus.vocabulary)
    # No text of one split stands in another: their longest common run of words is short next to the splits.
    assert 3000 < len(corpus.valid) < 10_000
    assert 3000 < len(corpus.test) < 10_000
    again = find_corpus(None, hub=HUB)
    assert torch.equal(corpus.train, again.train)
    assert corpus.vocabulary == again.vocabulary


def test_unigram_entropy_by_counting():
    corpus = encode({"train": lambda: [TRAIN], "valid": lambda: [VALID]}, "", stand_in=False)
    counts = Counter(words(corpus, "train"))
    total = sum(counts.values())
    expected = -sum(n / total * math.log(n / total) for n in counts.values())
    assert corpus.unigram_entropy().loss == pytest.approx(expected, rel=1e-12)


def test_streams_are_contiguous_text():
    corpus = find_corpus(None, hub=HUB)
    streams = corpus.streams("valid", 7, torch.device("cpu"))
    length = len(corpus.valid) // 7
    assert streams.shape == (7, length)
    assert torch.equal(streams[3], corpus.valid[3 * length : 4 * length])
    with pytest.raises(DataError, match="too few for 9999 streams"):
        corpus.streams("valid", 9999, torch.device("cpu"))
