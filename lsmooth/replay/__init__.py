"""Evaluate a step's loss again at other points of its segment, and put everything back."""

from lsmooth.replay.microbatch import replaying

__all__ = ["replaying"]
