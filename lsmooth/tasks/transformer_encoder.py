"""Figure 1(a): a word language model, a two-layer Transformer encoder on WikiText-2.

Model and settings are those of PyTorch's example "Language Modeling with nn.Transformer and torchtext", which the
paper trains: embedding 200, 2 heads, feed-forward 200, dropout 0.2, sequences of 35 words, SGD with lr 5.0, a factor of
0.95 an epoch, clipping at 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lsmooth.tasks.task import Baseline, Preset, Problem, Settings, Split, Task, epoch_generator
from lsmooth.tasks.text import WIKITEXT_FILES, WIKITEXT_SIGNS, Corpus, drawn_windows, find_corpus


@dataclass(frozen=True, kw_only=True)
class EncoderSettings(Settings):
    """Hyperparameters of the word language model.

    Attributes:
        embedding: Width of embedding and layers.
        heads: Attention heads.
        feed_forward: Width of the layers' hidden layer.
        layers: Number of layers.
        dropout: Share of activations dropped.
        sequence: Words in a sequence.
        lr_decay: Factor on the learning rate after each epoch.
    """

    batch_size: int = 20
    epochs: int = 5
    max_norm: float | None = 0.5
    embedding: int = 200
    heads: int = 2
    feed_forward: int = 200
    layers: int = 2
    dropout: float = 0.2
    sequence: int = 35
    lr_decay: float = 0.95


class EncoderLanguageModel(nn.Module):
    """Predict each word from those before it: embedding, sinusoidal positions, Transformer encoder, projection.

    Words come in as int64 (batch, sequence), logits go out as (batch, sequence, vocabulary).
    """

    positions: Tensor
    mask: Tensor

    def __init__(self, vocabulary: int, settings: EncoderSettings) -> None:
        super().__init__()
        width = settings.embedding
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(settings.dropout)
        layer = nn.TransformerEncoderLayer(
            width, settings.heads, settings.feed_forward, settings.dropout, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, settings.layers, enable_nested_tensor=False)
        self.decoder = nn.Linear(width, vocabulary)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        # Position p, frequency k: sin and cos of p / 10000^(2k / width) (Vaswani et al. 2017, Section 3.5).
        angles = torch.arange(settings.sequence)[:, None] * torch.exp(
            torch.arange(0, width, 2) * (-math.log(10_000.0) / width)
        )
        positions = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
        self.register_buffer("positions", positions, persistent=False)
        mask = nn.Transformer.generate_square_subsequent_mask(settings.sequence)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, words: Tensor) -> Tensor:
        """Return the logits of the word after each word."""
        length = words.shape[1]
        hidden = self.embedding(words) * math.sqrt(self.embedding.embedding_dim) + self.positions[:length]
        hidden = self.encoder(self.dropout(hidden), mask=self.mask[:length, :length], is_causal=True)
        logits: Tensor = self.decoder(hidden)
        return logits


class EncoderProblem(Problem):
    """One run: 20 streams of text side by side, cut into windows of 35 words, windows in random order."""

    def __init__(self, settings: EncoderSettings, corpus: Corpus, *, seed: int, device: torch.device) -> None:
        self.settings = settings
        self.corpus = corpus
        self.device = device
        self.text = corpus.streams("train", settings.batch_size, device)
        windows = (self.text.shape[1] - 1) // settings.sequence
        super().__init__(
            settings,
            EncoderLanguageModel(len(corpus.vocabulary), settings).to(device),
            seed=seed,
            steps_per_epoch=windows,
            examples=windows * settings.batch_size,
        )

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield words and the words that follow them, int64 (batch, sequence) each."""
        for window in torch.randperm(self.steps_per_epoch, generator=epoch_generator(self.seed, epoch)).tolist():
            yield _window(self.text, window * self.settings.sequence, self.settings.sequence)

    def drawn(self, which: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return windows, each of any stream and place."""
        return drawn_windows(self.text, which, self.settings.sequence)

    def loss(self, batch: tuple[Tensor, Tensor], carried: None) -> tuple[Tensor, None]:
        """Return the mean cross-entropy, in nats a word."""
        words, following = batch
        logits = self.model(words)
        return functional.cross_entropy(logits.flatten(0, 1), following.flatten()), None

    def lr_factor(self, step: int, epoch: int, batch: Any) -> float:
        """Return the decay of StepLR with one epoch a step."""
        return self.settings.lr_decay**epoch

    def metrics(self, split: Split) -> dict[str, Tensor | float]:
        """Return loss in nats a word and perplexity."""
        text = self.corpus.streams(split, min(self.settings.batch_size, 10), self.device)
        total, count = torch.zeros((), device=self.device), 0
        for start in range(0, text.shape[1] - 1, self.settings.sequence):
            words, following = _window(text, start, self.settings.sequence)
            logits = self.model(words)
            total += functional.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum")
            count += following.numel()
        loss = total / count
        return {"loss": loss, "perplexity": loss.exp()}

    def baseline(self) -> Baseline:
        """Return the entropy of the words' frequencies."""
        return self.corpus.unigram_entropy()


def _window(text: Tensor, start: int, length: int) -> tuple[Tensor, Tensor]:
    length = min(length, text.shape[1] - 1 - start)
    return text[:, start : start + length], text[:, start + 1 : start + 1 + length]


class TransformerEncoder(Task[EncoderSettings, Corpus]):
    """The word language model of Figure 1(a)."""

    name = "transformer-encoder"
    summary = "2-layer Transformer encoder, word language model on WikiText-2"
    figure = "Figure 1(a)"
    files = WIKITEXT_FILES
    signs = WIKITEXT_SIGNS
    hub = "Salesforce/wikitext, wikitext-2-v1"
    optimizer = "sgd"
    metric = "perplexity"

    def settings(self, preset: Preset) -> EncoderSettings:
        """Return the paper's settings; the small ones train the same model for fewer steps."""
        return EncoderSettings() if preset == "paper" else EncoderSettings(steps=200)

    def optimizer_defaults(self, optimizer: str, preset: Preset) -> dict[str, Any]:
        """Return the example's lr for SGD; the paper trains this task with no other optimizer."""
        return {"sgd": {"lr": 5.0}}.get(optimizer, {})

    def find_data(self, source: str | None) -> Corpus:
        """Find WikiText-2, or the built-in corpus."""
        return find_corpus(source, hub=("Salesforce/wikitext", "wikitext-2-v1"))

    def problem(
        self, settings: EncoderSettings, data: Corpus, *, seed: int, device: torch.device, hold_out: bool
    ) -> EncoderProblem:
        """Build the model; a corpus has a validation split of its own."""
        return EncoderProblem(settings, data, seed=seed, device=device)
