"""How precisely a device can compute, and how large its rounding errors in a gradient can be."""

from __future__ import annotations

from collections.abc import Iterable

import torch

# Upper bounds of a gradient's rounding error, as shares of its norm: 16 machine epsilons of a precision that products
# are also summed up in, 2 of one whose products are summed up in float32. Of twelve runs, the largest were a fifth.
_LARGEST_ERRORS = {
    torch.float64: 2.0**-48,
    torch.float32: 2.0**-19,
    torch.float16: 2.0**-9,
    torch.bfloat16: 2.0**-6,
}
# float32's matrix products in TensorFloat-32, which has float16's mantissa, or in bfloat16.
_MATRIX_PRODUCTS = {"highest": torch.float32, "high": torch.float16, "medium": torch.bfloat16}


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Return the widest real dtype that a device computes in: float64, or float32 on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


def largest_error(dtypes: Iterable[torch.dtype], device: torch.device) -> float:
    """Return how large the rounding error of a gradient can be, as a share of its norm.

    Args:
        dtypes: What it was computed in.
        device: Where: GPUs may form products of float32 matrices in a shorter format.
    """
    found = [dtype for dtype in dtypes if dtype in _LARGEST_ERRORS] or [torch.float32]
    if torch.float32 in found:
        found.append(_MATRIX_PRODUCTS[torch.get_float32_matmul_precision()])
        if device.type == "cuda" and torch._C._get_cudnn_allow_tf32():
            found.append(torch.float16)
    return max(_LARGEST_ERRORS[dtype] for dtype in found)
