"""A Transformer that translates German captions into English: the paper's Figures 1(b) and 3.

The model is that of Vaswani et al., "Attention Is All You Need" (2017), at its base sizes: `nn.Transformer` with six
layers on each side, one matrix for both embeddings and the projection, sinusoidal positions, label smoothing, and a
learning rate that grows over the warm-up and falls with the square root of the step afterwards ("Noam").

As in the authors' code, the loss that is trained on is the sum over a batch's tokens: the learning rates, clipping
thresholds and weight decays of the paper belong to that sum. What is shown is the cross-entropy a token, without
smoothing. Text is lower-cased and cut into words and punctuation; words seen less than three times become `<unk>`. The
authors cut with spaCy, so the vocabulary is not theirs to the word.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lsmooth.errors import DataError
from lsmooth.tasks.captions import caption_pairs
from lsmooth.tasks.files import check_regular
from lsmooth.tasks.hub import load_hub
from lsmooth.tasks.task import Baseline, Data, Preset, Problem, Settings, Split, Task
from lsmooth.tasks.text import texts

PAD, UNKNOWN, START, END = range(4)
_SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
_MIN_COUNT = 3
# Longer pairs are left out of training, as in the authors' preprocessing.
_MAX_WORDS = 100

MULTI30K_FILES = "train.de, train.en, val.de, val.en, test_2016_flickr.de and test_2016_flickr.en (or .gz)"
_STEMS = {"train": ("train",), "valid": ("val", "valid"), "test": ("test_2016_flickr", "test2016", "test")}

# The authors' published commands; lr is the multiplier of the schedule.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "generalized-signsgd": {"lr": 10.0, "betas": (0.9, 0.98), "eps": 1e-9, "weight_decay": 0.1},
    "adam": {"lr": 10.0, "betas": (0.9, 0.98), "eps": 1e-9, "weight_decay": 0.1},
    "sgd-momentum": {"lr": 1.0, "momentum": 0.9, "weight_decay": 1.0},
    "sgd-clip-grad": {"lr": 10.0, "max_norm": 1.0, "weight_decay": 1.0},
    "sgd-clip-momentum": {"lr": 1.0, "max_norm": 1.0, "momentum": 0.9, "weight_decay": 1.0},
    "sgd-momentum-normalized": {"lr": 10_000.0, "momentum": 0.9, "weight_decay": 1.0},
}


@dataclass(frozen=True, kw_only=True)
class TranslationSettings(Settings):
    """Hyperparameters of the translation model.

    Attributes:
        width: Of embeddings and layers (d_model).
        heads: Attention heads.
        feed_forward: Width of the layers' hidden layer.
        layers: Layers of the encoder, and as many of the decoder.
        dropout: Share of activations dropped.
        label_smoothing: Share of the target's probability that is spread over all words.
        warmup: Steps over which the learning rate grows.
    """

    batch_size: int = 256
    epochs: int = 400
    width: int = 512
    heads: int = 8
    feed_forward: int = 2048
    layers: int = 6
    dropout: float = 0.1
    label_smoothing: float = 0.1
    warmup: int = 128_000


# --- model ---


class TranslationTransformer(nn.Module):
    """Predict each target word from the source and the target words before it.

    44,140,544 parameters at the paper's sizes, and 512 for each word of the shared vocabulary.

    Args:
        vocabulary: Number of words of both languages together.
        settings: Sizes and dropout.
    """

    def __init__(self, vocabulary: int, settings: TranslationSettings) -> None:
        super().__init__()
        width = settings.width
        # With N(0, 1/width) the scaled embeddings and the logits both begin at a size of about 1.
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        with torch.no_grad():
            self.embedding.weight[PAD].zero_()
        self.dropout = nn.Dropout(settings.dropout)
        layer = nn.TransformerEncoderLayer(
            width, settings.heads, settings.feed_forward, settings.dropout, batch_first=True
        )
        encoder = nn.TransformerEncoder(layer, settings.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.transformer = nn.Transformer(
            width,
            settings.heads,
            num_decoder_layers=settings.layers,
            dim_feedforward=settings.feed_forward,
            dropout=settings.dropout,
            custom_encoder=encoder,
            batch_first=True,
        )

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the logits of the word after each target word.

        Args:
            source: Word numbers (batch, source length), padded with 0.
            target: Word numbers (batch, target length), padded with 0.

        Returns:
            Logits (batch, target length, vocabulary).
        """
        length = target.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=target.device).triu(1)
        missing = source == PAD
        hidden = self.transformer(
            self._embedded(source),
            self._embedded(target),
            tgt_mask=later,
            src_key_padding_mask=missing,
            memory_key_padding_mask=missing,
            tgt_is_causal=True,
        )
        return functional.linear(hidden, self.embedding.weight)

    def _embedded(self, words: Tensor) -> Tensor:
        width = self.embedding.embedding_dim
        places = positions(words.shape[1], width, words.device)
        return self.dropout(self.embedding(words) * math.sqrt(width) + places)


def positions(length: int, width: int, device: torch.device) -> Tensor:
    """Return sin and cos of p / 10000^(2k / width) for position p and frequency k, shape (length, width).

    Vaswani et al. 2017, Section 3.5.
    """
    frequencies = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10_000.0) / width))
    angles = torch.arange(length, device=device)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]


def noam(step: int, width: int, warmup: int) -> float:
    """Return width^-0.5 min(n^-0.5, n warmup^-1.5) for n = step + 1 (Vaswani et al. 2017, equation 3)."""
    n = step + 1
    return width**-0.5 * min(n**-0.5, n * warmup**-1.5)


# --- data ---


class Pairs(NamedTuple):
    """Sentence pairs as word numbers, each `<s> … </s>` and padded with 0: int64 (n, longest); lengths int64 (n,).

    The lengths stay on the CPU, where batches are chosen by them.
    """

    source: Tensor
    target: Tensor
    source_lengths: Tensor
    target_lengths: Tensor

    def to(self, device: torch.device) -> Pairs:
        """Return the same with the word numbers on `device`."""
        return Pairs(self.source.to(device), self.target.to(device), self.source_lengths, self.target_lengths)

    def take(self, which: Tensor, there: Tensor) -> Pairs:
        """Return some of the pairs, padded to the longest among them.

        Args:
            which: Their indices, int64 (m,) on the CPU.
            there: The same on the device of the word numbers; passed in, so that no batch waits for a copy.
        """
        source_lengths, target_lengths = self.source_lengths[which], self.target_lengths[which]
        return Pairs(
            self.source[there, : int(source_lengths.max())],
            self.target[there, : int(target_lengths.max())],
            source_lengths,
            target_lengths,
        )


@dataclass(frozen=True)
class TranslationData(Data):
    """Sentence pairs, German to English, with one vocabulary for both."""

    vocabulary: tuple[str, ...]
    train: Pairs
    valid: Pairs
    test: Pairs


def words_of(text: str) -> list[str]:
    """Return the words and punctuation marks of a sentence, lower-cased."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def encode_pairs(splits: dict[str, Sequence[tuple[str, str]]], origin: str, *, stand_in: bool) -> TranslationData:
    """Return German-English sentence pairs as word numbers; the vocabulary is that of both sides of "train".

    Raises:
        DataError: A split has no pairs.
    """
    words = {
        split: [(words_of(german), words_of(english)) for german, english in pairs] for split, pairs in splits.items()
    }
    for split, pairs in words.items():
        if not pairs:
            raise DataError(f"{origin} has no {split} sentences.")
    words["train"] = [pair for pair in words["train"] if max(map(len, pair)) <= _MAX_WORDS]
    counts: Counter[str] = Counter()
    for german, english in words["train"]:
        counts.update(german)
        counts.update(english)
    kept = sorted((word for word, count in counts.items() if count >= _MIN_COUNT), key=lambda w: (-counts[w], w))
    vocabulary = (*_SPECIALS, *kept)
    numbers = {word: number for number, word in enumerate(vocabulary)}

    def side(sentences: list[list[str]]) -> tuple[Tensor, Tensor]:
        lengths = np.array([len(sentence) + 2 for sentence in sentences])
        table = np.full((len(sentences), lengths.max()), PAD, np.int64)
        flat = [
            number
            for sentence in sentences
            for number in (START, *(numbers.get(word, UNKNOWN) for word in sentence), END)
        ]
        table[np.arange(table.shape[1]) < lengths[:, None]] = flat
        return torch.from_numpy(table), torch.from_numpy(lengths)

    encoded = {}
    for split, pairs in words.items():
        (source, source_lengths), (target, target_lengths) = (side([pair[k] for pair in pairs]) for k in (0, 1))
        encoded[split] = Pairs(source, target, source_lengths, target_lengths)
    return TranslationData(origin, stand_in, vocabulary, encoded["train"], encoded["valid"], encoded["test"])


def read_multi30k(folder: str | Path) -> dict[str, Sequence[tuple[str, str]]]:
    """Read German-English sentence pairs, one sentence a line, from files such as `train.de` and `train.en`.

    Raises:
        DataError: A file is missing or is not text, or the two of a split have different numbers of lines.
    """
    place = Path(folder)
    if not place.is_dir():
        raise DataError(f"There is no folder {folder}; --data takes a folder with {MULTI30K_FILES}, or hub.")
    splits: dict[str, Sequence[tuple[str, str]]] = {}
    for split, stems in _STEMS.items():
        found = [_language_files(place, stem) for stem in stems]
        files = next((pair for pair in found if pair is not None), None)
        if files is None:
            raise DataError(f"{folder} has no {split} sentences; looked for {MULTI30K_FILES}.")
        german, english = (_lines_of(file) for file in files)
        if len(german) != len(english):
            raise DataError(
                f"{files[0]} has {len(german)} lines and {files[1]} has {len(english)}; they must be translations of "
                "each other, line by line."
            )
        splits[split] = list(zip(german, english, strict=True))
    return splits


def _language_files(place: Path, stem: str) -> tuple[Path, Path] | None:
    for suffix in ("", ".gz"):
        german, english = place / f"{stem}.de{suffix}", place / f"{stem}.en{suffix}"
        if german.exists() and english.exists():
            return german, english
    return None


def _lines_of(path: Path) -> list[str]:
    check_regular(path)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8 (byte {error.start}).") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file; fetch it again.") from error


def _hub_pairs(source: str, name: str) -> dict[str, Sequence[tuple[str, str]]]:
    found = load_hub(source, name)
    splits: dict[str, Sequence[tuple[str, str]]] = {}
    for ours, theirs in (("train", "train"), ("valid", "validation"), ("test", "test")):
        if theirs not in found:
            raise DataError(f"{source} has no split named {theirs}; it has {', '.join(found)}.")
        columns = found[theirs].column_names
        if "de" not in columns or "en" not in columns:
            raise DataError(f"{source} has no columns de and en; it has {', '.join(columns)}.")
        german, english = (texts(found[theirs][name], f"The column {name} of {source}") for name in ("de", "en"))
        splits[ours] = list(zip(german, english, strict=True))
    return splits


# --- run ---


class TranslationProblem(Problem):
    """One run: batches of pairs of similar length, in random order."""

    loss_is_a_sum = True

    def __init__(
        self, settings: TranslationSettings, data: TranslationData, *, seed: int, device: torch.device
    ) -> None:
        self.settings = settings
        self.data = data
        self.splits = {"train": data.train.to(device), "valid": data.valid.to(device), "test": data.test.to(device)}
        super().__init__(
            settings,
            TranslationTransformer(len(data.vocabulary), settings).to(device),
            seed=seed,
            steps_per_epoch=math.ceil(len(data.train.source) / settings.batch_size),
            examples=len(data.train.source),
        )

    def batches(self, epoch: int) -> Iterator[Pairs]:
        """Yield the batches of an epoch.

        Pairs are shuffled, sorted by length within pools of a hundred batches, and cut into batches, which come in
        random order: little padding, and every epoch other neighbours.
        """
        pairs, size = self.splits["train"], self.settings.batch_size
        rng = np.random.default_rng((self.seed, epoch))
        lengths = (pairs.source_lengths + pairs.target_lengths).numpy()
        order = rng.permutation(len(lengths))
        batches: list[np.ndarray] = []
        for start in range(0, len(order), 100 * size):
            pool = order[start : start + 100 * size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches += [pool[first : first + size] for first in range(0, len(pool), size)]
        batches = [batches[number] for number in rng.permutation(len(batches))]
        which = torch.from_numpy(np.concatenate(batches))
        sizes = [len(batch) for batch in batches]
        for batch in zip(which.split(sizes), which.to(pairs.source.device).split(sizes), strict=True):
            yield pairs.take(*batch)

    def drawn(self, which: Tensor, rng: np.random.Generator) -> Pairs:
        """Return pairs of any length."""
        return self.splits["train"].take(which, which.to(self.splits["train"].source.device))

    def loss(self, batch: Pairs, carried: Any) -> tuple[Tensor, Tensor]:
        """Return the smoothed cross-entropy summed over the batch's tokens; carry the plain one, in nats a token."""
        logits = self.model(batch.source, batch.target[:, :-1])
        gold = batch.target[:, 1:]
        there = gold != PAD
        # In float32 under autocast too: bfloat16 is too coarse for a sum over thousands of tokens.
        log_shares = functional.log_softmax(logits.float(), dim=-1)
        plain = -log_shares.gather(2, gold[..., None])[..., 0]
        smoothing = self.settings.label_smoothing
        smoothed = (1 - smoothing) * plain - smoothing * log_shares.mean(-1)
        return (smoothed * there).sum(), (plain.detach() * there).sum() / _tokens(batch)

    def shown_loss(self, loss: Tensor, batch: Pairs, carried: Tensor) -> Tensor:
        """Return the cross-entropy in nats a token, without smoothing."""
        return carried

    def lr_factor(self, step: int, epoch: int, batch: Pairs) -> float:
        """Return the schedule's value; the learning rate is its multiplier."""
        return noam(step, self.settings.width, self.settings.warmup)

    def metrics(self, split: Split) -> dict[str, Tensor | float]:
        """Return loss in nats a token, perplexity, and accuracy: the share of next words that are guessed right."""
        pairs = self.splits[split]
        loss = correct = torch.zeros((), device=pairs.source.device)
        tokens = 0
        for which in torch.arange(len(pairs.source)).split(self.settings.batch_size):
            batch = pairs.take(which, which.to(pairs.source.device))
            logits, gold = self.model(batch.source, batch.target[:, :-1]), batch.target[:, 1:]
            loss = loss + functional.cross_entropy(
                logits.flatten(0, 1), gold.flatten(), ignore_index=PAD, reduction="sum"
            )
            correct = correct + ((logits.argmax(2) == gold) & (gold != PAD)).sum()
            tokens += _tokens(batch)
        loss = loss / tokens
        return {"loss": loss, "perplexity": loss.exp(), "accuracy": correct / tokens}

    def baseline(self) -> Baseline:
        """Return the entropy of the English words' frequencies, in nats a token."""
        gold = self.data.train.target[:, 1:]
        counts = torch.bincount(gold[gold != PAD]).double()
        shares = counts[counts > 0] / counts.sum()
        return Baseline("unigram entropy", float(-(shares * shares.log()).sum()))


def _tokens(batch: Pairs) -> int:
    """Return how many words are to be predicted: all target words but `<s>`."""
    return int(batch.target_lengths.sum()) - len(batch.target_lengths)


class TranslationTask(Task[TranslationSettings, TranslationData]):
    """The translation model of Figures 1(b) and 3."""

    name = "transformer-translation"
    summary = "6-layer encoder-decoder Transformer, German to English on Multi30k"
    figure = "Figures 1(b), 3"
    files = MULTI30K_FILES
    signs = ("train.de", "train.de.gz")
    hub = "bentrevett/multi30k"
    optimizer = "adam"
    metric = "perplexity"

    def settings(self, preset: Preset) -> TranslationSettings:
        """Return the paper's settings, or a model a quarter as wide with two layers, for 200 steps.

        In neither does the warm-up end: after 200 of 3,000 steps, the small one's learning rate is where the paper's
        is after 400 epochs, up to a factor of 2.5, so that the paper's multipliers serve both.
        """
        if preset == "paper":
            return TranslationSettings()
        return TranslationSettings(
            batch_size=64, epochs=1, steps=200, width=128, heads=4, feed_forward=256, layers=2, warmup=3_000
        )

    def optimizer_defaults(self, optimizer: str, preset: Preset) -> dict[str, Any]:
        """Return the hyperparameters of the authors' published commands."""
        return _DEFAULTS.get(optimizer, {})

    def find_data(self, source: str | None) -> TranslationData:
        """Find Multi30k, or generate captions."""
        if source is None:
            # As many as Multi30k has.
            pairs = caption_pairs(31_014, seed=0)
            splits: dict[str, Sequence[tuple[str, str]]] = {
                "train": pairs[2_014:], "valid": pairs[:1_014], "test": pairs[1_014:2_014]
            }  # fmt: skip
            return encode_pairs(splits, "generated German-English captions", stand_in=True)
        if source == "hub" or source.startswith("hub:"):
            return encode_pairs(_hub_pairs(source, self.hub), source, stand_in=False)
        return encode_pairs(read_multi30k(source), source, stand_in=False)

    def problem(
        self, settings: TranslationSettings, data: TranslationData, *, seed: int, device: torch.device, hold_out: bool
    ) -> TranslationProblem:
        """Build the model; the data has a validation split of its own."""
        return TranslationProblem(settings, data, seed=seed, device=device)
