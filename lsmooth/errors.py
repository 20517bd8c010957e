"""What lsmooth raises when it is asked for something that it cannot do: one sentence, with the mend in it."""

from __future__ import annotations

from collections.abc import Iterable


class LsmoothError(Exception):
    """Base of all errors that lsmooth raises on purpose; `str(error)` is one sentence for the user."""


class InvalidArgumentError(LsmoothError, ValueError):
    """An argument has a value that its function cannot take."""


class TraceError(LsmoothError):
    """A trace file cannot be read, or cannot be written where it was asked for."""


class TraceWarning(UserWarning):
    """A trace cannot be written where it was asked for, or not any more, or lacks steps; training goes on."""


class OptimizerError(LsmoothError, RuntimeError):
    """An optimizer meets parameters or gradients that it cannot step."""


class RecorderError(LsmoothError):
    """A training loop does something that the recorder cannot follow."""


class InputChangedError(RecorderError):
    """What a loss was computed from has changed since, so that it cannot be evaluated again as it was."""


class DataError(LsmoothError):
    """A data set is not where it was looked for, or is not what its name says."""


def compiler_failure(error: Exception) -> str | None:
    """Return why torch.compile found no way to compile something; None for any other error."""
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    # The first line says which backend, the second what it had to say, if it is not how to see its internals.
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Set TORCH")]
    return " ".join(lines[:2]) or type(error).__name__


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InvalidArgumentError:
    """Return the error for a `name` that is not among the `known` ones, with the closest of them as suggestions."""
    # Imported here, for those who mistype: the module takes its time.
    import difflib

    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}."
    return InvalidArgumentError(f"There is no {kind} named {name!r}; {hint}")
