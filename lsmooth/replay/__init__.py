"""The same loss again, at other points of a segment, and everything put back."""

from lsmooth.replay.microbatch import replaying

__all__ = ["replaying"]
