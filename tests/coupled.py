"""Small losses whose parts depend on one another: a quadratic with a known Hessian, and a Transformer layer."""

import copy

import torch
from torch import nn


class Quadratic(nn.Module):
    """f(x) = x^T H x / 2 for two tensors coupled by H."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.last = nn.Parameter(torch.randn(2, dtype=torch.float64))
        root = torch.randn(5, 5, dtype=torch.float64)
        self.hessian = root @ root.T

    def forward(self):
        x = torch.cat([self.first, self.last])
        return x @ self.hessian @ x / 2


class Tiny(nn.Module):
    """One Transformer layer on a few words, with a weight that is used twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)

    def forward(self, x, y):
        scores = self.layer(self.words(x)) @ self.words.weight.T
        return nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten())


def gradients(model, state, parts):
    """Return the gradient of the mean loss of all parts at other parameters, by name."""
    model = copy.deepcopy(model)
    model.load_state_dict(state)
    model.zero_grad()
    for x, y in parts:
        (model(x, y) / len(parts)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}
