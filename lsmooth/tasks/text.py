"""Text for the language models: the built-in corpus, folders of WikiText or Penn Treebank, the hub's copies.

A corpus is a vocabulary and each split as word numbers. Files of the real data sets are tokenised already: words are
what blanks separate, and each line ends with `<eos>`.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lsmooth.errors import DataError
from lsmooth.tasks.files import check_regular
from lsmooth.tasks.hub import load_hub
from lsmooth.tasks.task import Baseline, Data

UNKNOWN = "<unk>"
END = "<eos>"
# The lines of each split; a function, since large corpora are read twice and never held as text.
Lines = Mapping[str, Callable[[], Iterable[str]]]

WIKITEXT_FILES = (
    "wiki.train.tokens and wiki.valid.tokens, or train.txt and valid.txt, or train*.parquet and validation*.parquet"
)
WIKITEXT_SIGNS = ("wiki.train.tokens", "train.txt", "train*.parquet")
_WIKITEXT_PATTERNS = (
    {"train": "wiki.train.tokens", "valid": "wiki.valid.tokens", "test": "wiki.test.tokens"},
    {"train": "wiki.train.raw", "valid": "wiki.valid.raw", "test": "wiki.test.raw"},
    {"train": "train.txt", "valid": "valid.txt", "test": "test.txt"},
    {"train": "train*.parquet", "valid": "validation*.parquet", "test": "test*.parquet"},
)


@dataclass(frozen=True)
class Corpus(Data):
    """Text as word numbers.

    Attributes:
        vocabulary: The words, by number.
        train: Training text, int64 (n,).
        valid: Validation text, int64 (m,).
        test: Test text, int64 (k,); empty where there is none.
    """

    vocabulary: tuple[str, ...]
    train: Tensor
    valid: Tensor
    test: Tensor

    @property
    def has_test(self) -> bool:
        """Whether there is test text."""
        return len(self.test) > 0

    def unigram_entropy(self) -> Baseline:
        """Return the loss of guessing each word of the training text by its frequency alone, in nats a word."""
        shares = torch.bincount(self.train, minlength=len(self.vocabulary)).double() / len(self.train)
        shares = shares[shares > 0]
        return Baseline("unigram entropy", float(-(shares * shares.log()).sum()))

    def streams(self, split: str, count: int, device: torch.device) -> Tensor:
        """Return a split cut into `count` streams of text side by side, int64 (count, length) on the device.

        Raises:
            DataError: The split is empty or shorter than the number of streams.
        """
        text: Tensor = getattr(self, split)
        length = len(text) // count
        if length < 2:
            raise DataError(f"{self.origin} has {len(text)} words of {split} text, too few for {count} streams.")
        return text[: length * count].view(count, length).contiguous().to(device)


def find_corpus(
    source: str | None,
    *,
    hub: tuple[str, str | None] | tuple[str, str | None, str],
    patterns: Sequence[Mapping[str, str]] = _WIKITEXT_PATTERNS,
    files: str = WIKITEXT_FILES,
    column: str = "text",
    max_words: int | None = None,
) -> Corpus:
    """Find text: the built-in corpus (None), a folder, or the hub ("hub", "hub:NAME").

    Args:
        source: Where to look.
        hub: Name and configuration of the data set on the hub, and perhaps its branch.
        patterns: Sets of file names, by split; the first set whose "train" and "valid" are in the folder is read.
        files: The same in words, for the error.
        column: Name of the hub's column with the text.
        max_words: Number of words to keep, the most frequent ones; the others become `<unk>`. None keeps all.

    Raises:
        DataError: Nothing is there; the message names the files.
    """
    if source is None:
        return encode(reference_topics(), "the Python reference (pydoc_data.topics)", stand_in=True, min_count=3)
    lines = find_lines(source, hub=hub, patterns=patterns, files=files, column=column)
    return encode(lines, source, stand_in=False, max_words=max_words)


def find_lines(
    source: str,
    *,
    hub: tuple[str, str | None] | tuple[str, str | None, str],
    patterns: Sequence[Mapping[str, str]] = _WIKITEXT_PATTERNS,
    files: str = WIKITEXT_FILES,
    column: str = "text",
) -> Lines:
    """Find the lines of text of a folder or of the hub; the arguments are those of `find_corpus`.

    Raises:
        DataError: Nothing is there; the message names the files.
    """
    if source != "hub" and not source.startswith("hub:"):
        return read_folder(source, patterns, files, column)
    splits = load_hub(source, *hub)
    lines: dict[str, Callable[[], Iterable[str]]] = {}
    for ours, theirs in (("train", "train"), ("valid", "validation"), ("test", "test")):
        if theirs in splits:
            lines[ours] = _column_of(splits[theirs], column)
        elif ours != "test":
            raise DataError(f"{source} has no split named {theirs}; it has {', '.join(splits)}.")
    return lines


def read_folder(folder: str, patterns: Sequence[Mapping[str, str]], files: str, column: str = "text") -> Lines:
    """Return the lines of the splits of a data set in a folder; see `find_corpus`.

    Raises:
        DataError: The folder is missing, or none of the sets of files is in it.
    """
    place = Path(folder)
    if not place.is_dir():
        raise DataError(f"There is no folder {folder}; --data takes a folder with {files}, or hub.")
    for names in patterns:
        found = {split: sorted(place.glob(pattern)) for split, pattern in names.items()}
        if found["train"] and found["valid"]:
            return {split: _lines_of(paths, column) for split, paths in found.items() if paths}
    raise DataError(f"{folder} has none of the files looked for: {files}.")


def _lines_of(paths: Sequence[Path], column: str) -> Callable[[], Iterator[str]]:
    def lines() -> Iterator[str]:
        for path in paths:
            check_regular(path)
            if path.suffix == ".parquet":
                yield from _parquet_column(path, column)
            else:
                try:
                    with path.open(encoding="utf-8") as file:
                        yield from file
                except UnicodeDecodeError as error:
                    raise DataError(f"{path} is not text in UTF-8 (byte {error.start}).") from error

    return lines


def _parquet_column(path: Path, column: str) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path} needs pyarrow to be read, which is not installed; pip install pyarrow.") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise DataError(f"{path} has no column {column}; it has {', '.join(file.schema_arrow.names)}.")
            for batch in file.iter_batches(columns=[column]):
                yield from texts(batch.column(0).to_pylist(), f"The column {column} of {path}")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"{path} is not a Parquet file ({reason}).") from error


def _column_of(split: Any, column: str) -> Callable[[], Iterable[str]]:
    def lines() -> Iterator[str]:
        if column not in split.column_names:
            raise DataError(f"The data set has no column {column}; it has {', '.join(split.column_names)}.")
        for batch in split.iter(batch_size=1000):
            yield from texts(batch[column], f"The column {column} of the data set")

    return lines


def texts(cells: Iterable[Any], place: str) -> Iterator[str]:
    """Yield the cells of a column of text.

    Raises:
        DataError: A cell is not text.
    """
    for cell in cells:
        if not isinstance(cell, str):
            raise DataError(f"{place} holds {type(cell).__name__} where text is expected; choose another data set.")
        yield cell


def encode(lines: Lines, origin: str, *, stand_in: bool, max_words: int | None = None, min_count: int = 1) -> Corpus:
    """Return lines of blank-separated words as a corpus; the vocabulary is that of the training text.

    Args:
        lines: The lines of "train", "valid" and perhaps "test".
        origin: Where they came from, in words.
        stand_in: Whether they are the built-in stand-in.
        max_words: Size of the vocabulary, `<unk>` and `<eos>` included; None for no limit.
        min_count: Words seen less often in the training text become `<unk>`.

    Raises:
        DataError: A split has no words.
    """
    counts: Counter[str] = Counter()
    for line in lines["train"]():
        words = line.split()
        counts.update(words)
        counts[END] += 1
    specials = [UNKNOWN, END]
    ranked = sorted(
        (word for word, count in counts.items() if count >= min_count and word not in specials),
        key=lambda word: (-counts[word], word),
    )
    vocabulary = (specials + ranked)[:max_words]
    numbers = {word: number for number, word in enumerate(vocabulary)}
    splits: dict[str, Tensor] = {}
    for split in ("train", "valid", "test"):
        encoded = array("q")
        if split in lines:
            for line in lines[split]():
                encoded.extend(numbers.get(word, 0) for word in line.split())
                encoded.append(1)
            if len(encoded) < 2:
                raise DataError(f"{origin} has no words of {split} text.")
        splits[split] = as_tensor(encoded)
    return Corpus(origin, stand_in, tuple(vocabulary), splits["train"], splits["valid"], splits["test"])


def as_tensor(numbers: array) -> Tensor:
    """Return an `array("q")` as an int64 tensor on the same memory: a large corpus is not copied."""
    return torch.frombuffer(numbers, dtype=torch.int64) if numbers else torch.empty(0, dtype=torch.int64)


def reference_topics() -> Lines:
    """Return the reference topics that every CPython ships: about 465,000 characters of English prose and grammar.

    Words are lower-cased and split from punctuation. Of every twenty paragraphs one is for validation and one for
    test.
    """
    from pydoc_data.topics import topics

    paragraphs = [text for name in sorted(topics) for text in re.split(r"\n\s*\n", topics[name]) if text.strip()]
    splits: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for number, text in enumerate(paragraphs):
        split = {9: "valid", 19: "test"}.get(number % 20, "train")
        splits[split].append(" ".join(re.findall(r"[^\W_]+|_+|[^\w\s]", text.lower())))
    return {split: partial(list, texts) for split, texts in splits.items()}


def drawn_windows(streams: Tensor, which: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return windows of streams of text: words and the words that follow them, int64 (n, length) each.

    Args:
        streams: Text side by side, int64 (streams, words).
        which: Numbers of the windows, int64 (n,): those of the first stream come first.
        length: Words in a window; what does not fill one at the end of a stream belongs to none.
    """
    windows = (streams.shape[1] - 1) // length
    which = which.to(streams.device)
    rows, starts = which // windows, which % windows * length
    places = starts[:, None] + torch.arange(length + 1, device=streams.device)
    words = streams[rows[:, None], places]
    return words[:, :-1], words[:, 1:]
