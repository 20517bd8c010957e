"""The precision in which a device computes, and bounds of rounding errors in gradients."""

from __future__ import annotations

from collections.abc import Iterable

import torch

# Upper bounds of a gradient's rounding error, as shares of its norm: 16 machine epsilons if products are summed in the
# same precision, and 2 if they are summed in float32. The largest errors in twelve runs were a fifth of the bounds.
_LARGEST_ERRORS = {
    torch.float64: 2.0**-48,
    torch.float32: 2.0**-19,
    torch.float16: 2.0**-9,
    torch.bfloat16: 2.0**-6,
}
# Precision of float32 matrix products by torch's setting: TensorFloat-32 has the mantissa of float16.
_MATRIX_PRODUCTS = {"highest": torch.float32, "high": torch.float16, "medium": torch.bfloat16}


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Return the widest real dtype that a device computes in: float64, or float32 on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


def largest_error(dtypes: Iterable[torch.dtype], device: torch.device) -> float:
    """Return an upper bound of a gradient's rounding error, as a share of its norm.

    Args:
        dtypes: Dtypes that the gradient was computed in; float32 is assumed if none is known.
        device: Its device: a GPU may multiply float32 matrices in a shorter format.
    """
    found = [dtype for dtype in dtypes if dtype in _LARGEST_ERRORS] or [torch.float32]
    if torch.float32 in found:
        found.append(_MATRIX_PRODUCTS[torch.get_float32_matmul_precision()])
        if device.type == "cuda" and torch._C._get_cudnn_allow_tf32():
            found.append(torch.float16)
    return max(_LARGEST_ERRORS[dtype] for dtype in found)
