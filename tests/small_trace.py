"""A small real run with everything that commands and figures read: a trace in about a second.

`python tests/small_trace.py PATH` writes one.
"""

import math
import sys
from pathlib import Path

import torch
from torch import nn

import lsmooth

CONTEXT = 8


class TinyTransformer(nn.Module):
    """One encoder layer over the characters of a sentence."""

    def __init__(self, vocabulary, width=16):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.encoder = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.1, batch_first=True)
        self.decoder = nn.Linear(width, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, characters):
        hidden = self.encoder(self.embedding(characters), src_mask=self.mask, is_causal=True)
        return self.decoder(hidden)


def write_small_trace(path, steps=60, seed=0, **arguments):
    """Train `steps` steps with decaying lr, every step measured, and return the trace's path."""
    text = "the gradient of a smooth function changes little over a short step, and that of a rough one much. " * 20
    alphabet = sorted(set(text))
    data = torch.tensor([alphabet.index(character) for character in text])
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TinyTransformer(len(alphabet))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: math.cos(step / steps))
        with lsmooth.Recorder(model, optimizer, path, **arguments) as recorder:
            for _ in range(steps):
                starts = torch.randint(len(data) - CONTEXT - 1, (16, 1), generator=generator)
                batch = data[starts + torch.arange(CONTEXT + 1)]
                optimizer.zero_grad()
                recorder.backward(
                    lambda batch=batch: nn.functional.cross_entropy(model(batch[:, :-1]).mT, batch[:, 1:])
                )
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
    return Path(path)


if __name__ == "__main__":
    print(write_small_trace(sys.argv[1]))
