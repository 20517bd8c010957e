"""Checks the arguments of a recorder, and keeps them as `Settings`."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch

from lsmooth.errors import InvalidArgumentError, unknown_name
from lsmooth.precision import accumulation_dtype
from lsmooth.replay.microbatch import Closure
from lsmooth.trace.grouping import group_parameters
from lsmooth.trace.layout import GEOMETRIES, LAYER_NORMS, NORMS, Geometry

# The trace keeps the step as a signed and the seed as an unsigned 64-bit integer.
_LARGEST_STEP = 2**63 - 1
_LARGEST_SEED = 2**64 - 1
DEFAULT_GAMMAS = (1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6)


@dataclass(frozen=True)
class Blocks:
    """Groups of layers, each of which is moved along the step alone.

    Attributes:
        members: Positions of the parameters of each group, by the group's name.
        every: The groups are moved at measured steps whose number is a multiple of this.
    """

    members: Mapping[str, tuple[int, ...]]
    every: int

    @classmethod
    def checked(cls, blocks: Any, names: Sequence[str]) -> Blocks | None:
        """Return the groups that the argument `blocks` asks for; None for none.

        Args:
            blocks: A number of groups, a way to group parameters, or a pair of one of these and `every`.
            names: Names of the measured parameters.

        Raises:
            InvalidArgumentError: `blocks` is none of these, or no parameter falls into any group.
        """
        if blocks is None or blocks is False:
            return None
        by, every = blocks if isinstance(blocks, (tuple, list)) and len(blocks) == 2 else (blocks, 1)
        if isinstance(every, bool) or not isinstance(every, Integral) or every < 1:
            raise InvalidArgumentError(f"blocks={blocks!r}: every {every!r} steps makes no sense; give a positive int.")
        if isinstance(by, bool) or not isinstance(by, (Integral, str, Mapping, re.Pattern)):
            raise InvalidArgumentError(
                f"blocks={blocks!r} is neither a number of groups nor a way to group parameters such as 'module'."
            )
        groups = _runs_of_modules(names, int(by)) if isinstance(by, Integral) else group_parameters(names, by)
        return cls({name: tuple(members) for name, members in groups.items()}, int(every))

    def asks_for(self, step: int) -> bool:
        """Say whether the groups are moved at a step."""
        return step % self.every == 0

    def names_of(self, parameters: int) -> list[str]:
        """Return the group name of each of the first `parameters` parameters, "" for one in no group."""
        owners = {position: name for name, members in self.members.items() for position in members}
        return [owners.get(position, "") for position in range(parameters)]


def _runs_of_modules(names: Sequence[str], count: int) -> dict[str, list[int]]:
    """Cut the modules, in the network's order, into `count` runs with about equally many modules."""
    modules = group_parameters(names, "module")
    if not 1 <= count <= len(modules):
        raise InvalidArgumentError(
            f"blocks={count}: the model has {len(modules)} modules; give a number from 1 to {len(modules)}."
        )
    order = list(modules)
    ends = [round(len(order) * i / count) for i in range(count + 1)]
    runs = [order[start:stop] for start, stop in itertools.pairwise(ends)]
    return {
        run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}": [p for module in run for p in modules[module]]
        for run in runs
    }


@dataclass(frozen=True)
class Settings:
    """What is measured, and at which steps; see `Recorder` for the meaning of each.

    Attributes:
        every: Number of optimizer steps from one measured step to the next, or a function of the step number that says
            whether it is measured.
        gammas: Positions along a step, in (0, 1].
        endpoint: Whether x_{t+1} is evaluated too.
        coordinates: Number of coordinates followed in each parameter tensor.
        seed: Seed of the choice of coordinates and of the probes' randomness.
        probes: Closures whose mean loss is measured in place of the step's own loss; empty without probes.
        probe_size: Number of examples in a probe; None if unknown.
        geometries: The geometries to measure in, l2 first.
        layers: The geometry of each parameter's own norm if `geometries` has "layers"; else empty.
        densities: Whether all coordinates are counted.
        blocks: Groups of layers that are moved alone, and at which steps; None for none.
        critical: Whether the critical learning rate is searched for.
        cuda_graphs: Whether evaluations are played back as CUDA graphs.
        offload: Whether x_t and x_{t+1} are kept in the host's memory.
        autocast: True evaluates losses under the step's autocast contexts, False without autocast.
    """

    every: int | Callable[[int], bool]
    gammas: tuple[float, ...]
    endpoint: bool
    coordinates: int
    seed: int
    probes: tuple[Closure, ...]
    probe_size: int | None
    geometries: tuple[Geometry, ...]
    layers: tuple[Geometry, ...]
    densities: bool
    critical: bool
    blocks: Blocks | None
    cuda_graphs: bool
    offload: bool
    autocast: bool

    @classmethod
    def checked(
        cls,
        device: torch.device,
        names: Sequence[str],
        *,
        every: Any,
        gammas: Sequence[float],
        endpoint: bool,
        coordinates: Any,
        seed: Any,
        probe: Any,
        probe_size: Any,
        norms: Any,
        densities: bool,
        critical: bool,
        blocks: Any,
        cuda_graphs: bool,
        offload: bool,
        autocast: bool,
    ) -> Settings:
        """Return checked settings from a `Recorder`'s arguments; its parameters have `names` and lie on `device`.

        Raises:
            InvalidArgumentError: An argument is out of its range.
        """
        geometries, layers = checked_norms(norms, device, names)
        return cls(
            every=checked_every(every),
            gammas=checked_gammas(gammas),
            endpoint=bool(endpoint),
            coordinates=checked_coordinates(coordinates),
            seed=checked_seed(seed),
            probes=checked_probes(probe),
            probe_size=checked_probe_size(probe_size),
            geometries=geometries,
            layers=layers,
            densities=bool(densities),
            critical=bool(critical),
            blocks=Blocks.checked(blocks, names),
            cuda_graphs=bool(cuda_graphs),
            offload=bool(offload),
            autocast=bool(autocast),
        )

    def asks_for(self, step: int) -> bool:
        """Say whether a step is to be measured."""
        return step % self.every == 0 if isinstance(self.every, int) else bool(self.every(step))

    def check_for(self, device: torch.device, *, alone: bool, sharded: bool) -> None:
        """Check the settings that need one kind of device, or one process.

        Args:
            device: Device of the measured parameters.
            alone: Whether one process trains the model.
            sharded: Whether parameters are sharded over processes.

        Raises:
            InvalidArgumentError: A setting does not work here, or two settings exclude each other.
        """
        if self.densities and sharded:
            raise InvalidArgumentError(
                "densities=True counts the coordinates that one process holds; train with DistributedDataParallel, or "
                "follow single coordinates with coordinates=."
            )
        if self.cuda_graphs and not (device.type == "cuda" and alone):
            raise InvalidArgumentError(
                "cuda_graphs=True needs a model on an NVIDIA GPU that one process trains; leave it out here."
            )
        if self.cuda_graphs and not self.autocast:
            raise InvalidArgumentError(
                "cuda_graphs=True plays back evaluations as training makes them, and autocast=False changes them; "
                "leave one of the two out."
            )

    def facts(self) -> dict[str, Any]:
        """Return the settings that must be equal on all ranks and do not stand in the trace's header."""
        return {"probes": len(self.probes), "every": self.every_in_words, "autocast": self.autocast}

    @property
    def every_in_words(self) -> int | str:
        """`every` as a trace keeps it: the number, or "callable"."""
        return self.every if isinstance(self.every, int) else "callable"


def checked_every(every: Any) -> int | Callable[[int], bool]:
    """Return `every`, checked: a positive int, or a function of the step number."""
    if callable(every):
        return every  # type: ignore[no-any-return]
    if isinstance(every, bool) or not isinstance(every, Integral) or every < 1:
        raise InvalidArgumentError(f"every={every!r} is neither a positive int nor a callable on the step number.")
    if int(every) > _LARGEST_STEP:
        raise InvalidArgumentError(f"every={every} is more than {_LARGEST_STEP}; no step would be measured.")
    return int(every)


def checked_gammas(gammas: Sequence[float]) -> tuple[float, ...]:
    """Return `gammas`, checked: distinct positions in (0, 1]."""
    try:
        values = tuple(float(gamma) for gamma in gammas)
    except (OverflowError, TypeError, ValueError):
        raise InvalidArgumentError(f"gammas={gammas!r} must be numbers in (0, 1], at least one.") from None
    if not values or not all(math.isfinite(gamma) and 0 < gamma <= 1 for gamma in values):
        raise InvalidArgumentError(f"gammas={list(values)} must be numbers in (0, 1], at least one.")
    if len(set(values)) != len(values):
        raise InvalidArgumentError(f"gammas={list(values)} has the same position twice.")
    return values


def checked_coordinates(coordinates: Any) -> int:
    """Return `coordinates`, checked: the number to follow in each parameter tensor, 0 or more."""
    if isinstance(coordinates, bool) or not isinstance(coordinates, Integral) or coordinates < 0:
        raise InvalidArgumentError(f"coordinates={coordinates!r} is not a whole number, 0 or more.")
    return int(coordinates)


def checked_seed(seed: Any) -> int:
    """Return `seed`, checked: a whole number of 64 bits."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) <= _LARGEST_SEED:
        raise InvalidArgumentError(f"seed={seed!r} is not a whole number from 0 to {_LARGEST_SEED}.")
    return int(seed)


def checked_probes(probe: Any) -> tuple[Closure, ...]:
    """Return `probe` as a tuple of closures; empty without probes."""
    if probe is None:
        return ()
    probes = (probe,) if callable(probe) else tuple(probe)
    if not probes or not all(callable(item) for item in probes):
        raise InvalidArgumentError("probe must be a closure that returns a loss, or a list of such closures.")
    return probes


def checked_probe_size(size: Any) -> int | None:
    """Return `probe_size`, checked: the number of examples in a probe, or None."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, Integral) or size < 1):
        raise InvalidArgumentError(f"probe_size={size!r} is not a whole number, 1 or more.")
    return None if size is None else int(size)


def checked_norms(
    norms: Any, device: torch.device, names: Sequence[str]
) -> tuple[tuple[Geometry, ...], tuple[Geometry, ...]]:
    """Return `norms` as geometries, l2 first, and the geometry of each parameter's own norm.

    The second is empty unless `norms` holds a mapping from patterns of names to norms.
    """
    asked = (norms,) if isinstance(norms, (str, Mapping)) else tuple(norms)
    mappings = [norm for norm in asked if isinstance(norm, Mapping)]
    plain = [norm for norm in asked if not isinstance(norm, Mapping)]
    if len(mappings) > 1:
        raise InvalidArgumentError(f"norms={asked!r} has several mappings from names to norms; give one.")
    for pattern, norm in ((p, norm) for mapping in mappings for p, norm in mapping.items()):
        if not isinstance(norm, str):
            raise InvalidArgumentError(
                f"norms has {norm!r} for the pattern {pattern!r}; give one of {', '.join(LAYER_NORMS)}."
            )
    for norm in (*plain, *(norm for mapping in mappings for norm in mapping.values())):
        if norm not in LAYER_NORMS:
            raise unknown_name("norm", str(norm), LAYER_NORMS)
    own = own_norms(mappings[0], names) if mappings else ()
    if "spectral" in (*plain, *own) and accumulation_dtype(device) != torch.float64:
        raise InvalidArgumentError(
            f"norms={asked!r}: singular values need float64, which the device {device.type} lacks; "
            "leave out 'spectral', or train on another device."
        )
    wanted = {"l2", *plain, *(["layers"] if mappings else [])}
    return tuple(GEOMETRIES[norm] for norm in NORMS if norm in wanted), tuple(GEOMETRIES[norm] for norm in own)


def own_norms(patterns: Mapping[str, str], names: Sequence[str]) -> tuple[str, ...]:
    """Return the norm of each parameter: that of the first pattern found in its name. "*" is found in every name.

    Raises:
        InvalidArgumentError: A pattern is no regular expression or fits no parameter, or a parameter fits no pattern.
    """
    found: list[str] = []
    used: set[str] = set()
    try:
        for name in names:
            pattern = next((p for p in patterns if p == "*" or re.search(p, name)), None)
            if pattern is None:
                raise InvalidArgumentError(
                    f"norms: no pattern fits the parameter {name}; add '*': 'l2', which fits all other names."
                )
            used.add(pattern)
            found.append(patterns[pattern])
    except re.error as error:
        raise InvalidArgumentError(f"norms: a pattern is no regular expression ({error}); mend it.") from None
    unused = [pattern for pattern in patterns if pattern not in used and pattern != "*"]
    if unused:
        raise InvalidArgumentError(
            f"norms: the pattern {unused[0]!r} is the first match of no parameter; remove it, or mend it to match a "
            f"name such as {names[0]}."
        )
    return tuple(found)
