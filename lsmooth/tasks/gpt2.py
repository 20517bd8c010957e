"""GPT-2 on WikiText-103: the paper's Figure 2, and how many steps clipping shortens.

The model is Hugging Face's `GPT2LMHeadModel`, made from a configuration of 16 layers, 410 wide: 50.4 million
parameters. Adam, 250 steps of linear warm-up to 2.5e-4, then a cosine to 0, with and without clipping at norm 0.25.

The paper says of its vocabulary that it has 28,996 entries, which is the size of BERT's cased WordPiece vocabulary to
the word. So text is cut by that tokenizer wherever its `vocab.txt` is at hand: in the data's folder, or fetched with
the data from the hub. A folder without it is read by words, of which the 28,996 most frequent are kept: the model is
as large, but its losses are of words, and not comparable with those of the paper.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lsmooth.errors import DataError
from lsmooth.tasks.files import check_regular
from lsmooth.tasks.task import Baseline, Preset, Problem, Settings, Split, Task, epoch_generator
from lsmooth.tasks.text import WIKITEXT_FILES, WIKITEXT_SIGNS, Corpus, Lines, as_tensor, find_corpus, find_lines

VOCABULARY = 28_996
_HUB = ("Salesforce/wikitext", "wikitext-103-raw-v1")
_BERT = "google-bert/bert-base-cased"
_BERT_FILE = "vocab.txt"


@dataclass(frozen=True, kw_only=True)
class GPT2Settings(Settings):
    """Hyperparameters of GPT-2.

    Attributes:
        layers: Transformer blocks.
        width: Of embedding and blocks.
        heads: Attention heads.
        feed_forward: Width of the blocks' hidden layer.
        context: Tokens in a sequence.
        dropout: After embeddings, attention and feed-forward.
        warmup: Steps over which the learning rate grows linearly from 0; a cosine takes it back to 0 at the end.
    """

    batch_size: int = 256
    epochs: int = 200
    max_norm: float | None = 0.25
    layers: int = 16
    width: int = 410
    heads: int = 10
    feed_forward: int = 2100
    context: int = 256
    dropout: float = 0.1
    warmup: int = 250


# --- model ---


def gpt2(vocabulary: int, settings: GPT2Settings) -> nn.Module:
    """Return GPT-2 with these sizes and random weights; logits (batch, sequence, vocabulary) come out as `.logits`.

    At the paper's sizes it has 50,397,180 parameters, 201.6 MB in float32.

    Raises:
        DataError: The package transformers is not installed.
    """
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        raise DataError(
            "The task gpt2 needs the package transformers, which is not installed; pip install 'lsmooth[transformers]'."
        ) from None
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_positions=settings.context,
            n_embd=settings.width,
            n_layer=settings.layers,
            n_head=settings.heads,
            n_inner=settings.feed_forward,
            resid_pdrop=settings.dropout,
            embd_pdrop=settings.dropout,
            attn_pdrop=settings.dropout,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
    )


# --- data ---


def wordpiece(lines: Lines, vocabulary: Path, origin: str) -> Corpus:
    """Return lines of text cut by BERT's cased WordPiece tokenizer; each line ends with its `[SEP]`.

    Args:
        lines: The lines of "train", "valid" and perhaps "test".
        vocabulary: The tokenizer's `vocab.txt`, a token a line.
        origin: Where the lines came from, in words.

    Raises:
        DataError: The package transformers is not installed, the vocabulary is not one of BERT's, or a split is empty.
    """
    try:
        from tokenizers import BertWordPieceTokenizer
    except ImportError:
        raise DataError(
            f"{vocabulary} needs the package tokenizers, which is not installed; pip install 'lsmooth[transformers]'."
        ) from None
    check_regular(vocabulary)
    try:
        tokens = tuple(vocabulary.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise DataError(f"{vocabulary} is not text in UTF-8 (byte {error.start}).") from error
    if not {"[UNK]", "[SEP]"} <= set(tokens):
        raise DataError(f"{vocabulary} is not a BERT vocabulary: it has no [UNK] and [SEP]; remove it or replace it.")
    tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=False)
    end = tokens.index("[SEP]")
    splits: dict[str, Tensor] = {}
    for split in ("train", "valid", "test"):
        encoded = array("q")
        if split in lines:
            for some in _batched(lines[split](), 10_000):
                # WikiText's own mark for unknown words is no word of BERT's.
                texts = [line.replace("<unk>", "[UNK]") for line in some]
                for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
                    encoded.extend(encoding.ids)
                    encoded.append(end)
            if len(encoded) < 2:
                raise DataError(f"{origin} has no words of {split} text.")
        splits[split] = as_tensor(encoded)
    return Corpus(origin, False, tokens, splits["train"], splits["valid"], splits["test"])


def _batched(items: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while some := list(itertools.islice(iterator, size)):
        yield some


def _fetch_vocabulary() -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(_BERT, _BERT_FILE))
    except Exception as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise DataError(
            f"The tokenizer {_BERT} could not be fetched ({reason}); check the connection, or give a folder with the "
            f"data and {_BERT_FILE} with --data DIR."
        ) from error


# --- run ---


class GPT2Problem(Problem):
    """One run: the text cut into windows of the context's length, in random order."""

    def __init__(self, settings: GPT2Settings, corpus: Corpus, *, seed: int, device: torch.device) -> None:
        self.settings = settings
        self.corpus = corpus
        self.texts = {split: getattr(corpus, split).to(device) for split in ("train", "valid", "test")}
        self._windows = (len(corpus.train) - 1) // settings.context
        super().__init__(
            settings,
            gpt2(len(corpus.vocabulary), settings).to(device),
            seed=seed,
            steps_per_epoch=self._windows // settings.batch_size,
            examples=self._windows,
        )

    def batches(self, epoch: int) -> Iterator[Tensor]:
        """Yield the batches of an epoch: int64 (batch, context + 1); the last token is only predicted, not read.

        Windows that do not fill a batch are left out of the epoch.
        """
        # The whole order is copied to the device once, so that no batch waits for a copy.
        order = torch.randperm(self._windows, generator=epoch_generator(self.seed, epoch)).to(
            self.texts["train"].device
        )
        size = self.settings.batch_size
        for number in range(self.steps_per_epoch):
            yield self._read("train", order[number * size : (number + 1) * size])

    def drawn(self, which: Tensor, rng: np.random.Generator) -> Tensor:
        """Return windows, int64 (n, context + 1)."""
        return self._read("train", which.to(self.texts["train"].device))

    def _read(self, split: Split | str, windows: Tensor) -> Tensor:
        text, context = self.texts[split], self.settings.context
        return text[windows[:, None] * context + torch.arange(context + 1, device=text.device)]

    def _cross_entropy(self, windows: Tensor, reduction: str) -> Tensor:
        logits = self.model(input_ids=windows[:, :-1]).logits
        return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction)

    def loss(self, batch: Tensor, carried: None) -> tuple[Tensor, None]:
        """Return the mean cross-entropy, in nats a token."""
        return self._cross_entropy(batch, "mean"), None

    def lr_factor(self, step: int, epoch: int, batch: Tensor) -> float:
        """Return the linear warm-up, and the cosine to 0 at the end of the run."""
        warmup = self.settings.warmup
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, self.total_steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def metrics(self, split: Split) -> dict[str, Tensor | float]:
        """Return loss in nats a token and perplexity, over whole windows."""
        count = (len(self.texts[split]) - 1) // self.settings.context
        if not count:
            raise DataError(f"{self.corpus.origin} has too little {split} text for one window; use a smaller context.")
        total = torch.zeros((), device=self.texts[split].device)
        for windows in torch.arange(count, device=total.device).split(self.settings.batch_size):
            total += self._cross_entropy(self._read(split, windows), "sum")
        loss = total / (count * self.settings.context)
        return {"loss": loss, "perplexity": loss.exp()}

    def baseline(self) -> Baseline:
        """Return the entropy of the tokens' frequencies."""
        return self.corpus.unigram_entropy()


class GPT2Task(Task[GPT2Settings, Corpus]):
    """GPT-2 on WikiText-103 (Figure 2)."""

    name = "gpt2"
    summary = "16-layer GPT-2, language model on WikiText-103"
    figure = "Figure 2"
    files = f"{WIKITEXT_FILES}, and BERT's {_BERT_FILE}"
    hub = ", ".join(_HUB)
    signs = WIKITEXT_SIGNS
    optimizer = "adam"
    metric = "perplexity"

    def settings(self, preset: Preset) -> GPT2Settings:
        """Return the paper's settings, or a smaller model on shorter windows, for 200 steps."""
        if preset == "paper":
            return GPT2Settings()
        return GPT2Settings(
            batch_size=16, epochs=20, steps=200, layers=4, width=96, heads=4, feed_forward=384, context=64, warmup=20
        )

    def optimizer_defaults(self, optimizer: str, preset: Preset) -> dict[str, Any]:
        """Return the paper's lr for Adam, or one that suits 200 steps; the paper trains it with no other optimizer."""
        return {"lr": 2.5e-4 if preset == "paper" else 2e-3} if optimizer == "adam" else {}

    def find_data(self, source: str | None) -> Corpus:
        """Find WikiText-103 and perhaps BERT's vocabulary, or the built-in corpus."""
        vocabulary = None
        if source == "hub":
            vocabulary = _fetch_vocabulary()
        elif source is not None and (Path(source.removeprefix("hub:")) / _BERT_FILE).exists():
            vocabulary = Path(source.removeprefix("hub:")) / _BERT_FILE
        if source is not None and vocabulary is not None:
            return wordpiece(find_lines(source, hub=_HUB), vocabulary, source)
        return find_corpus(source, hub=_HUB, max_words=VOCABULARY)

    def problem(
        self, settings: GPT2Settings, data: Corpus, *, seed: int, device: torch.device, hold_out: bool
    ) -> GPT2Problem:
        """Build the model; a corpus has a validation split of its own."""
        return GPT2Problem(settings, data, seed=seed, device=device)
