"""The header of a run's trace: what is known before the first step."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lsmooth import __version__
from lsmooth.errors import InvalidArgumentError
from lsmooth.loop.settings import Settings
from lsmooth.loop.subject import Subject
from lsmooth.measure.coordinates import choose_coordinates
from lsmooth.trace.attributes import NUMBERS_OF_GROUPS
from lsmooth.trace.header import Header


def header_of(
    subject: Subject,
    settings: Settings,
    ranks: int,
    metadata: Mapping[str, Any],
) -> Header:
    """Return the header of a run's trace.

    Args:
        subject: The model, its optimizers and parameters.
        settings: What is measured.
        ranks: Number of processes that train together.
        metadata: The user's own notes.
    """
    coordinates = choose_coordinates(
        subject.names, [p.shape for p in subject.parameters], settings.coordinates, settings.seed
    )
    return Header(
        parameters=subject.names,
        parameter_sizes=tuple(p.numel() for p in subject.parameters),
        gammas=settings.gammas,
        groups=subject.groups,
        real=subject.real,
        endpoint=settings.endpoint,
        noise=len(settings.probes) > 1,
        coordinate_names=coordinates.names,
        coordinate_owners=coordinates.owners,
        coordinate_indices=coordinates.indices,
        attributes=_description(subject, settings, ranks, metadata),
        norms=tuple(geometry.name for geometry in settings.geometries if geometry.name != "l2"),
        densities=settings.densities,
        critical=settings.critical,
        blocks=settings.blocks is not None,
    )


def _description(subject: Subject, settings: Settings, ranks: int, metadata: Mapping[str, Any]) -> dict[str, Any]:
    groups = [_group(group) for optimizer in subject.optimizers for group in optimizer.param_groups]
    probes = len(settings.probes)
    objective = f"mean of {probes} probe losses" if probes else "the step's mini-batch loss"
    if probes and settings.probe_size is not None:
        objective += f", {settings.probe_size} examples each"
    if not settings.autocast:
        objective += ", without autocast"
    return {
        "title": "Local smoothness of a training loss along its optimizer steps",
        "lsmooth_version": __version__,
        "torch_version": str(torch.__version__),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "model": type(subject.model).__name__,
        "optimizer": subject.optimizer_name,
        "optimizer_groups": groups,
        "parameter_shapes": [list(p.shape) for p in subject.parameters],
        "dtype": ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in subject.parameters})),
        "device": str(subject.device),
        "seed": settings.seed,
        "every": settings.every_in_words,
        "endpoint": int(settings.endpoint),
        "autocast": int(settings.autocast),
        "norms": [geometry.name for geometry in settings.geometries],
        **({"layer_norms": [geometry.name for geometry in settings.layers]} if settings.layers else {}),
        **({"blocks": settings.blocks.names_of(len(subject.names))} if settings.blocks is not None else {}),
        **({"probes": probes} if probes else {}),
        **({} if settings.probe_size is None else {"probe_size": settings.probe_size}),
        "objective": objective if ranks == 1 else f"{objective}, mean over {ranks} ranks",
        "user_metadata": _users(metadata),
    }


def _group(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a group of parameters says, but for the parameters."""
    said = {str(key): plain(value) for key, value in group.items() if key != "params"}
    # Readers compute with these; a group may have several of one, or a text in its place.
    no_numbers = [name for name in NUMBERS_OF_GROUPS if not isinstance(said.get(name), (int, float))]
    return said | dict.fromkeys(said.keys() & set(no_numbers))


def _users(metadata: Mapping[str, Any]) -> Any:
    try:
        return plain(dict(metadata))
    except RecursionError:
        raise InvalidArgumentError(
            "metadata is nested too deeply for JSON; give it with fewer levels, or as a text."
        ) from None


def plain(value: Any) -> Any:
    """Return a value in types that JSON can hold; anything unknown becomes its `str`."""
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, Tensor) and value.numel() == 1 and value.device.type != "meta":
        return value.item()
    return str(value)
