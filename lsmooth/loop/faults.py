"""Errors of measurements: raised until something has been measured, and from then on turned into warnings."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator


class Faults:
    """Keeps errors of measurements from ending a training run.

    While nothing has been measured, an error is raised: it is a mistake in the arguments, or a loop that cannot be
    measured at all. A later error costs one measurement, and each kind of error is warned about once. With several
    processes every error is raised: a process that gave up alone would leave the others waiting.

    Args:
        alone: Whether one process trains.

    Attributes:
        measured: Whether a step has been measured.
        latest: The last thing that went wrong, in one sentence; None for nothing.
    """

    def __init__(self, alone: bool) -> None:
        self._alone = alone
        self._told: set[str] = set()
        self.measured = False
        self.latest: str | None = None

    @contextlib.contextmanager
    def contained(self, give_up: Callable[[], None]) -> Iterator[None]:
        """Run a block of the recorder's own code; after an error in it, call `give_up`, and raise or warn."""
        try:
            yield
        except Exception as error:
            give_up()
            if not self.contains():
                raise
            self.tell("A step is not measured", error)

    def contains(self) -> bool:
        """Say whether an error is kept from the training loop now, and only warned about."""
        return self.measured and self._alone

    def tell(self, what: str, error: Exception) -> None:
        """Warn that something is left out because of an error, if the error is the first of its kind.

        Args:
            what: What is left out, the first half of the sentence.
            error: Gives the reason, its first line.
        """
        reason = str(error).strip().split("\n")[0]
        self.say(f"{what}, and training goes on: {reason or type(error).__name__}", kind=f"{type(error)} {reason[:40]}")

    def say(self, sentence: str, kind: str) -> None:
        """Remember a sentence as `latest`, and warn with it if it is the first of its kind."""
        self.latest = sentence
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(sentence, stacklevel=3)
