"""The measuring instrument of a recorder: made once from the settings, and used at each step."""

from __future__ import annotations

import contextlib

import torch

from lsmooth.errors import LsmoothError
from lsmooth.loop.faults import Faults
from lsmooth.loop.gradient import GradientKeeper
from lsmooth.loop.settings import Settings
from lsmooth.loop.step import Step
from lsmooth.loop.subject import Subject
from lsmooth.measure.blocks import BlockCurvature
from lsmooth.measure.coordinates import FollowedCoordinates
from lsmooth.measure.critical import CriticalRate
from lsmooth.measure.geometries import NormsInUse
from lsmooth.measure.measurement import CHECK, measure, points_of
from lsmooth.measure.probes import Probes
from lsmooth.measure.quantities import quantities_of
from lsmooth.measure.recording import Recording
from lsmooth.measure.row import Row
from lsmooth.parallel.ranks import Ranks
from lsmooth.replay.evaluation import Evaluation
from lsmooth.replay.graphs import Player
from lsmooth.replay.hearing import heard_process_wide
from lsmooth.replay.leftovers import Leftovers
from lsmooth.replay.leftovers import sentence as leftovers_sentence
from lsmooth.trace.header import Header
from lsmooth.trace.layout import Status


class Instrument:
    """Measures steps.

    Args:
        subject: The model, its optimizers and parameters.
        settings: What is measured.
        ranks: The processes that train together.
        header: The trace's header, which names the followed coordinates.
        recording: Takes rows, and reports what was found in them.
        faults: Keeps errors from the loop.

    Attributes:
        gradients: Decides whether gradients of steps are borrowed or copied.
        evaluation: Evaluates losses again.
        probes: The probes that are measured in place of the step's own loss; None without probes.
    """

    def __init__(
        self,
        subject: Subject,
        settings: Settings,
        ranks: Ranks,
        header: Header,
        recording: Recording,
        faults: Faults,
    ) -> None:
        parameters = subject.parameters
        norms = NormsInUse.of(parameters, settings.geometries, settings.layers)
        self.gradients = GradientKeeper(
            parameters,
            norms.two,
            norms.gradients,
            may_borrow=ranks.plain_gradients(),
            edited_unseen=recording.handover.found_edited_gradient,
        )
        self.evaluation = Evaluation(
            parameters,
            norms.two.dtype,
            takes_early=ranks.whole_gradients_arrive(),
            shares_gradient_memory=ranks.shares_gradient_memory(),
            player=Player(parameters, subject.device) if settings.cuda_graphs else None,
            averager=ranks.averager,
        )
        self.probes: Probes | None = None
        if settings.probes:
            self.probes = Probes(
                settings.probes,
                settings.seed,
                parameters,
                norms.gradients,
                self.evaluation,
                subject.model,
                autocast=settings.autocast,
                equal_part=ranks.equal_part if ranks.sharded and not ranks.alone else None,
            )
        followed = FollowedCoordinates(header.coordinate_names, header.coordinate_owners, header.coordinate_indices)
        self._quantities = quantities_of(parameters, settings.geometries, followed, norms, recording.densities)
        if settings.critical:
            eps = max(torch.finfo(p.dtype).eps for p in parameters)
            self._quantities.append(CriticalRate(ranks.agreed, ranks.alone, eps, faults.tell))
        if settings.blocks is not None:
            members = list(settings.blocks.members.values())
            self._quantities.append(BlockCurvature(members, settings.blocks.asks_for, norms.two))
        self._points = points_of(settings.gammas, settings.endpoint)
        self._settings = settings
        # With probes, x_t needs no further evaluation without autocast: `Probes` does it.
        self._autocast = settings.autocast or bool(settings.probes)
        self._ranks = ranks
        self._faults = faults
        # x_t is evaluated a second time once, as a check; and at every step after a check that found a difference.
        self._checked = False
        self._found_to_differ = recording.handover.found_difference
        self._differs = False
        # What evaluations change and nobody puts back is looked for at the first measured step.
        self._looked = False

    def measure(self, step: Step, row: Row) -> None:
        """Fill and judge the row of a step that has been taken; after an error, the row is flagged.

        Raises:
            Exception: The loss cannot be evaluated again at any point, and nothing has been measured so far.
        """
        try:
            self._measure(step, row)
        except Exception as error:
            # If the loss was evaluated again at one point, the loop can be measured, and the error is not raised.
            if not (self._faults.contains() or (self._ranks.alone and row.evaluated)):
                _explain(error, step.number)
                raise
            self._faults.tell(f"Step {step.number} is flagged, since its loss could not be evaluated again", error)
            row.fail(step.loss, step.lr)
        self._faults.measured = True

    def _measure(self, step: Step, row: Row) -> None:
        checks = not self._checked or self._differs or self._found_to_differ()
        points = [CHECK, *self._points] if checks else self._points
        leftovers = None
        if not self._looked:
            starts = [start for microbatch in step.microbatches for start in microbatch.surroundings.starts]
            leftovers = Leftovers(starts)
        keeping = self.probes if self._keeps(step) else None
        heard: list[str] = []
        with contextlib.nullcontext(heard) if leftovers is None else heard_process_wide() as heard:
            measure(step, self.evaluation, self._quantities, points, row, keeping, autocast=self._autocast)
        if keeping is not None:
            keeping.settle()
        self._looked = True
        changed = list(dict.fromkeys([*heard, *leftovers.changed()])) if leftovers is not None else []
        if changed:
            self._faults.say(leftovers_sentence(changed), kind="leftovers")
        self._checked = self._checked or not step.gradient.changed
        self._ranks.join(row.numbers)
        well = row.judge()
        # Reading a number of a GPU would wait for it; there, the writer's thread finds out a few steps later.
        if checks and well.device.type == "cpu" and int(row["status"].numpy()) & Status.NOT_REPEATED:
            self._differs = True
        for quantity in self._quantities:
            quantity.at_end(well, step)

    def _keeps(self, step: Step) -> bool:
        """Say whether the probes' loss and gradient at x_{t+1} are kept as the next step's start.

        They are not kept where `every` is a function, which may only be called when its step has come. Nor with several
        ranks, each of which would have to know that nothing has changed on the others.
        """
        every = self._settings.every
        next_is_due = isinstance(every, int) and self._settings.asks_for(step.number + 1)
        return next_is_due and self._ranks.alone and not self._settings.cuda_graphs

    def close(self) -> None:
        """Release memory."""
        if self.probes is not None:
            self.probes.forget()
        self.evaluation.close()


def _explain(error: Exception, number: int) -> None:
    """Add to an error of the user's code where it was raised; Python 3.10 has no way to."""
    if hasattr(error, "add_note") and not isinstance(error, LsmoothError):
        error.add_note(
            f"lsmooth was evaluating the loss again, at the first measured step ({number}); let the loss be the same "
            "each time that it is computed: draw batches outside of it."
        )
