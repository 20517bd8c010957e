"""How precisely a device can compute."""

from __future__ import annotations

import torch


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Return the widest real dtype that a device computes in: float64, or float32 on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64
