"""Figures of a trace: axes-level functions that take `ax=`, draw, and return the Axes."""
