"""Record the smoothness of an ordinary PyTorch loop, then ask what it shows.

python examples/plain_loop.py run.h5
"""

import sys

import torch
from torch import nn

import lsmooth


class SpiralClassifier(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, 3)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(points))


def spirals(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points on three interleaved spiral arms, and which arm each is on."""
    labels = torch.randint(3, (count,))
    radius = torch.rand(count)
    angle = 4 * radius + 2 * torch.pi / 3 * labels + 0.1 * torch.randn(count)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), labels


def main(path: str, steps: int = 300) -> None:
    torch.manual_seed(0)
    model = SpiralClassifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)

    with lsmooth.Recorder(model, optimizer, path, every=5) as recorder:
        for step in range(steps):
            points, labels = spirals(128)
            optimizer.zero_grad()
            # In place of loss = …; loss.backward():
            loss = recorder.backward(
                lambda points=points, labels=labels: nn.functional.cross_entropy(model(points), labels)
            )
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 100 == 0:
                print(f"step {step}: loss {loss:.3f}")

    with lsmooth.Trace(path) as trace:
        print(trace)
        print(lsmooth.estimate(trace, by="module")[["group", "method", "L0", "L1"]].to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "run.h5")
