"""What becomes of an error in a measurement: an error at the start, and from then on a warning."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator


class Faults:
    """Keeps errors of measurements from ending a training run.

    While nothing has been measured, an error is passed on: then it is a mistake in the arguments, or a loop of which
    nothing can be measured. Later ones cost the measurement; each kind is warned about once. Of several processes that
    train together, one that gives up alone would leave the others waiting: there all errors are passed on.

    Args:
        alone: Whether one process trains.

    Attributes:
        measured: Whether a step has been measured.
        latest: What went wrong last, in one sentence; None for nothing.
    """

    def __init__(self, alone: bool) -> None:
        self._alone = alone
        self._told: set[str] = set()
        self.measured = False
        self.latest: str | None = None

    @contextlib.contextmanager
    def contained(self, give_up: Callable[[], None]) -> Iterator[None]:
        """Run a block of a recorder's own; after an error in it, `give_up` forgets the measurement."""
        try:
            yield
        except Exception as error:
            give_up()
            if not self.contains():
                raise
            self.tell("A step is not measured", error)

    def contains(self) -> bool:
        """Say whether an error is kept from the training loop now."""
        return self.measured and self._alone

    def tell(self, what: str, error: Exception) -> None:
        """Warn that something is left out because of an error, if it is the first of its kind."""
        reason = str(error).strip().split("\n")[0]
        self.say(f"{what}, and training goes on: {reason or type(error).__name__}", kind=f"{type(error)} {reason[:40]}")

    def say(self, sentence: str, kind: str) -> None:
        """Warn with a sentence, if it is the first of its kind."""
        self.latest = sentence
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(sentence, stacklevel=3)
