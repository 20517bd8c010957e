"""The errors and warnings of lsmooth; each message is one sentence that says how to mend it."""

from __future__ import annotations

from collections.abc import Iterable


class LsmoothError(Exception):
    """Base of all errors that lsmooth raises deliberately; `str(error)` is one sentence for the user."""


class InvalidArgumentError(LsmoothError, ValueError):
    """An argument has a value that its function cannot take."""


class TraceError(LsmoothError):
    """A trace file cannot be read, or cannot be written where it was asked for."""


class TraceWarning(UserWarning):
    """A trace cannot be written (any more), or lacks steps; training goes on."""


class OptimizerError(LsmoothError, RuntimeError):
    """An optimizer cannot step a parameter or a gradient."""


class RecorderError(LsmoothError):
    """A training loop does something that the recorder cannot follow."""


class InputChangedError(RecorderError):
    """An input of a loss has changed since, so that the loss cannot be evaluated again."""


class DataError(LsmoothError):
    """A data set is not where it was looked for, or is not what its name says."""


def compiler_failure(error: Exception) -> str | None:
    """Return the reason if an error comes from torch.compile failing to compile something; None for other errors."""
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    # The first line names the backend, and the second the reason; hints about TORCH_ variables are left out.
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Set TORCH")]
    return " ".join(lines[:2]) or type(error).__name__


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InvalidArgumentError:
    """Return the error for a `name` that is not among the `known` ones; it suggests the closest known names."""
    # Imported here, since importing takes time and only mistyped names need it.
    import difflib

    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}."
    return InvalidArgumentError(f"There is no {kind} named {name!r}; {hint}")
