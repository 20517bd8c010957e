"""What is brought from the host in pieces: views of all of each tensor, whatever its shape and strides."""

import pytest
import torch

from lsmooth.replay.parking import in_pieces


class Elsewhere(torch.Tensor):
    """A tensor that says it lies on another device, until it is brought from there."""

    @property
    def device(self):
        return torch.device("meta")

    def to(self, *_, **__):
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (5,), (1, 40), (12, 5), (3, 4, 5)])
def test_pieces_are_views_of_all_of_a_tensor(shape, size):
    tensors = [
        torch.randn(shape),
        torch.randn(tuple(reversed(shape))).permute(tuple(reversed(range(len(shape))))),
        torch.randn(3),
    ]
    others = [torch.randn(shape).as_subclass(Elsewhere) for _ in range(2)] + [torch.randn(3)]
    expected = [a + b.as_subclass(torch.Tensor) for a, b in zip(tensors, others, strict=True)]
    count = 0
    for parts, brought in in_pieces(tensors, others, size):
        for part, more in zip(parts, brought, strict=True):
            assert type(more) is torch.Tensor
            rows = len(part) if part.dim() else 1
            assert part.numel() <= size or rows == 1 or part is tensors[2]
            part.add_(more)
            count += 1
    assert count >= 3
    for tensor, value in zip(tensors, expected, strict=True):
        torch.testing.assert_close(tensor, value, rtol=0, atol=0)
