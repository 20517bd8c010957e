"""What a step's loss is evaluated by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Takes nothing, and returns a loss.
Closure = Callable[[], Any]
