"""Follows a loop's steps: x_t is copied before a step that is due, and the step is measured when it is over."""

from __future__ import annotations

from lsmooth.instrument import Instrument
from lsmooth.loop.attempt import Attempts
from lsmooth.loop.faults import Faults
from lsmooth.loop.joint_step import JointStep
from lsmooth.loop.settings import Settings
from lsmooth.loop.step import Step
from lsmooth.loop.subject import Subject
from lsmooth.loop.watching import Watch
from lsmooth.measure.recording import Recording
from lsmooth.parallel.ranks import Ranks
from lsmooth.trace.layout import Status


class Stepping:
    """Follows the steps of a loop, and has the due ones measured.

    Args:
        subject: The model, its optimizers and parameters.
        settings: What is measured, and at which steps.
        instrument: Measures the steps.
        recording: Takes the rows of measured and skipped steps.
        ranks: The processes that train together.
        faults: Keeps errors from the loop.

    Attributes:
        joint: The joint step in progress.
        attempts: Counts steps, and collects the backward passes before each.
        watch: Captures losses in loops that call backward themselves.
    """

    def __init__(
        self,
        subject: Subject,
        settings: Settings,
        instrument: Instrument,
        recording: Recording,
        ranks: Ranks,
        faults: Faults,
    ) -> None:
        self._settings = settings
        self._instrument = instrument
        self._recording = recording
        self._step: Step | None = None
        self.joint = JointStep(subject.optimizers, faults, self._begin, self._taken, self._end, self._give_up)
        self.attempts = Attempts(
            subject,
            self.joint,
            instrument.gradients,
            instrument.evaluation.on_row_device,
            self._asks_for,
            recording.add_skipped,
            faults,
            collects=not settings.probes,
            offload=settings.offload,
        )
        self.attempts.count_from(recording.next_step)
        self.watch = Watch(self.attempts, ranks.context)
        self.joint.attach()

    def close(self) -> None:
        """Detach from the loop, and release the memory."""
        self.watch.close()
        self.joint.close()
        self._step = None
        self.attempts.close()

    def _asks_for(self, step: int) -> bool:
        return not self._recording.in_vain and self._settings.asks_for(step)

    def _give_up(self) -> None:
        self.attempts.forget()
        self._step = None

    def _begin(self) -> None:
        """Copy x_t if the step is due; its gradient is complete, and the step is about to be taken."""
        if not self.attempts.due:
            self.attempts.forget()
            return
        probes = self._instrument.probes
        if probes is not None:
            self._step = self.attempts.finished_by(probes.at_start())
        else:
            self._step = self.attempts.finished(watched=self.watch.on)

    def _taken(self) -> None:
        self.attempts.step_taken()

    def _end(self, moved: bool) -> None:
        """Measure the step that is over; `moved` says whether anything but its optimizers changed parameters."""
        step, self._step = self._step, None
        handover = self._recording.handover
        if step is None:
            handover.flush_if_old()
            return
        seconds = self._recording.seconds
        row = handover.new_row(step.flags | (int(Status.MOVED) if moved else 0))
        self._instrument.measure(step, row)
        handover.add(row, step.number, seconds)
