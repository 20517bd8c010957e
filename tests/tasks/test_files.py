"""Data sets from odd files: pipes, devices, columns of another type, damaged files; each ends in one sentence."""

import gzip
import os

import pyarrow
import pyarrow.parquet
import pytest

from lsmooth import tasks
from lsmooth.errors import DataError
from lsmooth.tasks.text import find_corpus, texts

FILES = {
    "transformer-encoder": ["wiki.train.tokens", "wiki.valid.tokens"],
    "gpt2": ["train.txt", "valid.txt"],
    "awd-lstm": ["ptb.train.txt", "ptb.valid.txt"],
    "transformer-translation": ["train.de", "train.en", "val.de", "val.en"],
    "resnet20": [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"],
}


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [pipe, device, folder])
@pytest.mark.parametrize("name", FILES)
def test_only_regular_files_are_read(tmp_path, name, make):
    """A pipe would hang, and a device would fill the memory."""
    for file in FILES[name]:
        make(tmp_path / file)
    with pytest.raises(DataError, match=r"is not a regular file|has no train sentences"):
        tasks.get(name).find_data(str(tmp_path))


@pytest.mark.parametrize(
    "column",
    [[1, 2], [1.5], [b"bytes"], [["a"]], [None], [{"a": 1}], [True]],
    ids=["int", "float", "bytes", "list", "null", "struct", "bool"],
)
def test_a_parquet_column_that_is_not_text(tmp_path, column):
    for split in ("train", "validation"):
        pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / f"{split}.parquet")
    kind = type(column[0]).__name__
    with pytest.raises(DataError, match=rf"The column text of .*train.parquet holds {kind} where text is expected"):
        find_corpus(str(tmp_path), hub=("x", None))


def test_parquet_files_cut_and_flipped_end_in_sentences(tmp_path):
    table = pyarrow.table({"text": ["some words of text"] * 500})
    pyarrow.parquet.write_table(table, tmp_path / "validation.parquet")
    whole = (tmp_path / "validation.parquet").read_bytes()
    read = 0
    for place in range(0, len(whole), 7):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]):
            (tmp_path / "train.parquet").write_bytes(damaged)
            try:
                find_corpus(str(tmp_path), hub=("x", None))
            except DataError as error:
                message = str(error)
                assert "\n" not in message, message
            else:
                read += 1
    # Some bytes of a Parquet file are of no consequence.
    assert read < len(whole) // 7


@pytest.mark.parametrize("kind", ["cut", "flipped", "no gzip"])
def test_damaged_gzip_files_end_in_a_sentence(tmp_path, kind):
    whole = gzip.compress(b"ein Satz\n" * 1000)
    damaged = {
        "cut": whole[:-9],
        "flipped": whole[:12] + bytes([whole[12] ^ 0xFF]) + whole[13:],
        "no gzip": b"ein Satz",
    }
    for file in ("train.de.gz", "train.en.gz"):
        (tmp_path / file).write_bytes(damaged[kind])
    with pytest.raises(DataError, match=r"is not a whole gzip file"):
        tasks.get("transformer-translation").find_data(str(tmp_path))


def test_texts_pass_as_they_are():
    assert list(texts(["a", "", "b"], "The column x")) == ["a", "", "b"]
