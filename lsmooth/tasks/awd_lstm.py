"""AWD-LSTM on Penn Treebank: the paper's Figure 5 and the right half of Table 1.

Model and regularisation are those of Merity, Keskar, Socher, "Regularizing and Optimizing LSTM Language Models" (2018):
three LSTM layers whose hidden-to-hidden weights are dropped, dropout masks that stay the same along a sequence, dropout
of whole words, tied embedding and output weights, penalties on activations and on their changes (AR, TAR), and
sequences of varying length. Late in the run weights are averaged (NT-ASGD).
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lsmooth.tasks.averaging import LateAverage
from lsmooth.tasks.task import Baseline, Preset, Problem, Settings, Split, Task
from lsmooth.tasks.text import Corpus, drawn_windows, find_corpus

PTB_FILES = "ptb.train.txt, ptb.valid.txt and ptb.test.txt"
_PATTERNS = (
    {"train": "ptb.train.txt", "valid": "ptb.valid.txt", "test": "ptb.test.txt"},
    {"train": "train.txt", "valid": "valid.txt", "test": "test.txt"},
    {"train": "train*.parquet", "valid": "validation*.parquet", "test": "test*.parquet"},
)

# The authors' published commands. `max_norm` of the optimizers that clip is scaled with each sequence's length.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "generalized-signsgd": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1.2e-6},
    "adam": {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 5e-6},
    "sgd-momentum": {"lr": 1.0, "momentum": 0.9, "weight_decay": 1e-5},
    "sgd-clip-grad": {"lr": 50.0, "max_norm": 10.0, "weight_decay": 1.2e-6},
    "sgd-clip-momentum": {"lr": 20.0, "max_norm": 2.5, "momentum": 0.9, "weight_decay": 1.2e-6},
    "sgd-momentum-normalized": {"lr": 2.0, "momentum": 0.9, "weight_decay": 5e-6},
}

# Output and cell state of one layer, (1, batch, units) each; a state has one such pair per layer.
LayerState = tuple[Tensor, Tensor]
State = tuple[LayerState, ...]


@dataclass(frozen=True, kw_only=True)
class AWDLSTMSettings(Settings):
    """Hyperparameters of AWD-LSTM.

    Attributes:
        embedding: Width of the embedding and of the last layer's output: both use the same weight matrix.
        hidden: Units of all layers but the last.
        layers: Number of LSTM layers.
        bptt: Usual number of words in a sequence; half as many in one batch of twenty. Lengths are normal, deviation 5.
        dropout: Of the last layer's output, one mask a sequence.
        dropout_hidden: Between layers, one mask a sequence.
        dropout_input: Of the embedded words, one mask a sequence.
        dropout_embedding: Share of the vocabulary's words that are dropped from a batch altogether.
        weight_drop: Share of hidden-to-hidden weights dropped in a batch.
        alpha: Of the activation penalty (AR), alpha times the mean square of the last layer's dropped output.
        beta: Of the slowness penalty (TAR), beta times the mean square of the last layer's change from word to word.
        nonmono: n of `LateAverage`, in reports: weights are averaged, and their mean evaluated, from the first report
            whose validation loss is above the best of those more than n reports earlier. None for no averaging.
    """

    batch_size: int = 40
    epochs: int = 750
    embedding: int = 400
    hidden: int = 1150
    layers: int = 3
    bptt: int = 70
    dropout: float = 0.4
    dropout_hidden: float = 0.25
    dropout_input: float = 0.4
    dropout_embedding: float = 0.1
    weight_drop: float = 0.5
    alpha: float = 2.0
    beta: float = 1.0
    nonmono: int | None = 5


# --- model ---


def locked_dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """Drop features of x (batch, sequence, features) for a whole sequence at a time, and scale up the others."""
    if not training or not share:
        return x
    return x * functional.dropout(torch.ones_like(x[:, :1]), share)


class WeightDropLSTM(nn.Module):
    """An LSTM layer that drops a share of its hidden-to-hidden weights (DropConnect), anew in each forward pass.

    The same weights are missing at all steps of the sequence (Merity et al. 2018, Section 2). Inputs and outputs are
    (batch, sequence, features).

    Args:
        inputs: Features that come in.
        units: Features that go out.
        weight_drop: Share of hidden-to-hidden weights dropped in training mode.
    """

    def __init__(self, inputs: int, units: int, weight_drop: float) -> None:
        super().__init__()
        # Dropped weights are new tensors in each call, so cuDNN cannot keep them in one piece of memory.
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
        self.weight_drop = weight_drop
        self.weight_ih = nn.Parameter(torch.empty(4 * units, inputs))
        self.weight_hh = nn.Parameter(torch.empty(4 * units, units))
        self.bias_ih = nn.Parameter(torch.empty(4 * units))
        self.bias_hh = nn.Parameter(torch.empty(4 * units))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(units**-0.5), units**-0.5)

    def forward(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """Return the outputs, and the state after the last word."""
        weights = [
            self.weight_ih,
            functional.dropout(self.weight_hh, self.weight_drop, self.training),
            self.bias_ih,
            self.bias_hh,
        ]
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and not cpu_has_bfloat16_lstm():
            with torch.autocast("cpu", enabled=False):
                return _lstm(x.float(), (state[0].float(), state[1].float()), weights, self.training)
        # Training under autocast leaves a bfloat16 state, which does not fit the float32 weights without autocast.
        return _lstm(x, (state[0].to(x.dtype), state[1].to(x.dtype)), weights, self.training)


def _lstm(x: Tensor, state: LayerState, weights: list[Tensor], training: bool) -> tuple[Tensor, LayerState]:
    """Call the function under nn.LSTM, since nn.LSTM itself would register dropped weights as parameters."""
    output, h, c = torch.lstm(
        x, state, weights, has_biases=True, num_layers=1, dropout=0.0, train=training, bidirectional=False,
        batch_first=True,
    )  # fmt: skip
    return output, (h, c)


@functools.cache
def cpu_has_bfloat16_lstm() -> bool:
    """Return whether an LSTM runs under bfloat16 autocast on this CPU.

    oneDNN has that LSTM for CPUs with AVX-512 alone, and raises an error on others.
    """
    number = torch.zeros(1, 1, 1, device="cpu")
    weights = [number.new_zeros(4, 1), number.new_zeros(4, 1), number.new_zeros(4), number.new_zeros(4)]
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            _lstm(number, (number, number), weights, training=True)
    except RuntimeError:
        return False
    return True


class AWDLSTM(nn.Module):
    """The language model; 24,221,600 parameters at the paper's sizes with Penn Treebank's 10,000 words.

    Args:
        vocabulary: Number of words.
        settings: Sizes and dropouts.
    """

    def __init__(self, vocabulary: int, settings: AWDLSTMSettings) -> None:
        super().__init__()
        self.settings = settings
        self.embedding = nn.Embedding(vocabulary, settings.embedding)
        widths = [settings.embedding] + [settings.hidden] * (settings.layers - 1) + [settings.embedding]
        self.units = widths[1:]
        self.layers = nn.ModuleList(
            WeightDropLSTM(before, after, settings.weight_drop) for before, after in itertools.pairwise(widths)
        )
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def start(self, batch: int) -> State:
        """Return the state at the beginning of a text: zeros."""
        weight = self.embedding.weight
        return tuple((weight.new_zeros(1, batch, size), weight.new_zeros(1, batch, size)) for size in self.units)

    def forward(self, words: Tensor, state: State) -> tuple[Tensor, State, Tensor, Tensor]:
        """Return logits of the word after each word, the new state, and the last layer's outputs.

        Args:
            words: int64 (batch, sequence).
            state: State after the text so far.

        Returns:
            Logits (batch, sequence, vocabulary), the state after the last word, and the last layer's outputs
            (batch, sequence, embedding) as they are and with dropout, for the penalties.
        """
        settings = self.settings
        table = self.embedding.weight
        if self.training and settings.dropout_embedding:
            table = table * functional.dropout(torch.ones_like(table[:, :1]), settings.dropout_embedding)
        x = locked_dropout(functional.embedding(words, table), settings.dropout_input, self.training)
        output, after = self.recur(x, state)
        dropped = locked_dropout(output, settings.dropout, self.training)
        return functional.linear(dropped, self.embedding.weight, self.bias), after, output, dropped

    def recur(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the last layer's outputs for embedded words (batch, sequence, embedding), and the state after them."""
        after = []
        for number, layer in enumerate(self.layers):
            if number:
                x = locked_dropout(x, self.settings.dropout_hidden, self.training)
            x, reached = layer(x, state[number])
            after.append(reached)
        return x, tuple(after)


# --- run ---


class Window(NamedTuple):
    """A batch: words and the words that follow them, int64 (batch, sequence) each, and the length drawn for it."""

    words: Tensor
    following: Tensor
    drawn: int


def draw_lengths(words: int, bptt: int, rng: np.random.Generator) -> Sequence[int]:
    """Draw the lengths of an epoch's sequences: normal around bptt, for one in twenty around bptt / 2; at least 5.

    Merity et al. 2018, Section 5. The last may reach beyond the text.

    Args:
        words: Words in each stream.
        bptt: The usual length.
        rng: Where the draws come from.
    """
    lengths = []
    left = words - 2
    while left > 0:
        around = bptt if rng.random() < 0.95 else bptt / 2
        lengths.append(max(5, int(rng.normal(around, 5))))
        left -= lengths[-1]
    return lengths


class AWDLSTMProblem(Problem):
    """One run: streams of text side by side, read in order, the state carried from batch to batch."""

    def __init__(self, settings: AWDLSTMSettings, corpus: Corpus, *, seed: int, device: torch.device) -> None:
        self.settings = settings
        self.corpus = corpus
        self.device = device
        self.text = corpus.streams("train", settings.batch_size, device)
        model = AWDLSTM(len(corpus.vocabulary), settings).to(device)
        self.network = model
        self._average = None if settings.nonmono is None else LateAverage(model, self._twin, settings.nonmono)
        super().__init__(
            settings,
            model,
            seed=seed,
            steps_per_epoch=len(self._lengths(0, seed)),
            examples=(self.text.shape[1] - 1) // settings.bptt * settings.batch_size,
        )

    def compile(self) -> None:
        """Compile what comes before and after the recurrent layers, for sequences of any length.

        The recurrent layers would be unrolled word by word, into one graph for each length of sequence. Each takes
        minutes to compile, and lengths vary from batch to batch.
        """
        # Not a decorator: that would import the compiler, which takes a second, with this module.
        self.network.recur = torch.compiler.disable(self.network.recur)  # type: ignore[method-assign]
        super().compile()

    def _lengths(self, epoch: int, seed: int) -> Sequence[int]:
        return draw_lengths(self.text.shape[1], self.settings.bptt, np.random.default_rng((seed, epoch)))

    def batches(self, epoch: int) -> Iterator[Window]:
        """Yield the sequences of an epoch, in the order of the text."""
        start = 0
        for drawn in self._lengths(epoch, self.seed):
            length = min(drawn, self.text.shape[1] - 1 - start)
            yield Window(self.text[:, start : start + length], self.text[:, start + 1 : start + 1 + length], drawn)
            start += drawn

    def drawn(self, which: Tensor, rng: np.random.Generator) -> Window:
        """Return windows of the usual length, each of any stream and place."""
        return Window(*drawn_windows(self.text, which, self.settings.bptt), self.settings.bptt)

    def loss(self, batch: Window, carried: tuple[State, Tensor] | None) -> tuple[Tensor, tuple[State, Tensor]]:
        """Return the cross-entropy in nats a word plus AR and TAR; carry the state, and the cross-entropy alone."""
        state = self.network.start(len(batch.words)) if carried is None else carried[0]
        logits, after, output, dropped = self.model(batch.words, state)
        plain = functional.cross_entropy(logits.flatten(0, 1), batch.following.flatten())
        slowness = (output[:, 1:] - output[:, :-1]).square().mean()
        penalty = self.settings.alpha * dropped.square().mean() + self.settings.beta * slowness
        return plain + penalty, (after, plain)

    def lr_factor(self, step: int, epoch: int, batch: Window) -> float:
        """Return the drawn length over bptt: a short sequence takes a short step (Merity et al. 2018, Section 5)."""
        return batch.drawn / self.settings.bptt

    def clip_factor(self, step: int, epoch: int, batch: Window) -> float:
        """Return the same factor as for the learning rate, as the authors' code has it."""
        return batch.drawn / self.settings.bptt

    def shown_loss(self, loss: Tensor, batch: Window, carried: tuple[State, Tensor]) -> Tensor:
        """Return the cross-entropy alone, without AR and TAR."""
        return carried[1]

    def _twin(self) -> AWDLSTM:
        """Return a model of the same form without values, so that no random numbers of the run are used up."""
        with torch.device("meta"):
            model = AWDLSTM(len(self.corpus.vocabulary), self.settings)
        return model.to_empty(device=self.device)

    def after_step(self) -> None:
        """Average the weights, late in the run (see `LateAverage`)."""
        if self._average is not None:
            self._average.after_step()

    def after_report(self, split: Split, metrics: Mapping[str, float]) -> None:
        """Watch the validation loss, which averaging waits for."""
        if self._average is not None and not self._average.started:
            self._average.check((metrics if split == "valid" else self.evaluate("valid"))["loss"])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of averaging."""
        return {} if self._average is None else {"averaging": self._average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken; a checkpoint of an older lsmooth has averaged nothing."""
        if self._average is not None and "averaging" in state:
            self._average.load_state_dict(state["averaging"])

    def metrics(self, split: Split) -> dict[str, Tensor | float]:
        """Return loss in nats a word and perplexity, the state carried through the text.

        Once averaging has started, they are those of the mean weights.
        """
        network = self.network
        if self._average is not None and self._average.mean is not None:
            network = self._average.mean
        text = self.corpus.streams(split, min(self.settings.batch_size, 10), self.device)
        state = network.start(len(text))
        total, count = torch.zeros((), device=self.device), 0
        for start in range(0, text.shape[1] - 1, self.settings.bptt):
            following = text[:, start + 1 : start + 1 + self.settings.bptt]
            logits, state, _, _ = network(text[:, start : start + following.shape[1]], state)
            total += functional.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum")
            count += following.numel()
        loss = total / count
        return {"loss": loss, "perplexity": loss.exp()}

    def baseline(self) -> Baseline:
        """Return the entropy of the words' frequencies."""
        return self.corpus.unigram_entropy()


class AWDLSTMTask(Task[AWDLSTMSettings, Corpus]):
    """AWD-LSTM on Penn Treebank (Figure 5, Table 1)."""

    name = "awd-lstm"
    summary = "3-layer AWD-LSTM, word language model on Penn Treebank"
    figure = "Figure 5, Table 1"
    files = PTB_FILES
    signs = ("ptb.train.txt",)
    hub = "ptb-text-only/ptb_text_only"
    optimizer = "generalized-signsgd"
    metric = "perplexity"

    def settings(self, preset: Preset) -> AWDLSTMSettings:
        """Return the paper's settings, or a model a fifth as wide, on shorter sequences, for 200 steps."""
        if preset == "paper":
            return AWDLSTMSettings()
        return AWDLSTMSettings(batch_size=20, epochs=20, steps=200, embedding=100, hidden=200, bptt=35, nonmono=None)

    def optimizer_defaults(self, optimizer: str, preset: Preset) -> dict[str, Any]:
        """Return the hyperparameters of the authors' published commands."""
        return _DEFAULTS.get(optimizer, {})

    def find_data(self, source: str | None) -> Corpus:
        """Find Penn Treebank, or the built-in corpus."""
        # The repository itself holds a loading script, which `datasets` no longer runs; the conversion is data.
        return find_corpus(
            source,
            hub=(self.hub, None, "refs/convert/parquet"),
            patterns=_PATTERNS,
            files=f"{PTB_FILES} (or parquet)",
            column="sentence",
        )

    def problem(
        self, settings: AWDLSTMSettings, data: Corpus, *, seed: int, device: torch.device, hold_out: bool
    ) -> AWDLSTMProblem:
        """Build the model; a corpus has a validation split of its own."""
        return AWDLSTMProblem(settings, data, seed=seed, device=device)
