"""Groups of parameters, as the argument `by=` names them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lsmooth.errors import InvalidArgumentError

By = str | Mapping[str, str] | re.Pattern[str]


def module_of(parameter: str) -> str:
    """Return the name of the module of a parameter; a parametrized weight belongs to its layer."""
    owner = parameter.split(".parametrizations.")[0] if ".parametrizations." in parameter else None
    if owner is None:
        owner = parameter.rpartition(".")[0]
    return owner or "(root)"


def columns_of(groups: Sequence[Sequence[int]]) -> tuple[slice, list[list[int]]]:
    """Return the columns from the first to the last tensor of any group, and each group's positions among them."""
    first = min(min(group) for group in groups)
    columns = slice(first, max(max(group) for group in groups) + 1)
    return columns, [[position - first for position in group] for group in groups]


def group_parameters(parameters: Sequence[str], by: By) -> dict[str, list[int]]:
    """Return the positions of the parameters of each group, groups in the network's order.

    Args:
        parameters: Names of the parameter tensors, in the network's order.
        by: "global", "module" or "parameter"; a mapping from parameter name to group name, which leaves out the
            parameters that it lacks; or a regular expression, compiled or as a string. The first group of its match, or
            the whole match without groups, names the group; parameters without a match, or with an empty one, are left
            out.

    Raises:
        InvalidArgumentError: No parameter falls into any group, or the regular expression is not valid.
    """
    if by == "global":
        return {"global": list(range(len(parameters)))}
    if by == "parameter":
        return {name: [position] for position, name in enumerate(parameters)}
    groups: dict[str, list[int]] = {}
    if isinstance(by, Mapping):
        for position, name in enumerate(parameters):
            if name in by:
                groups.setdefault(by[name], []).append(position)
    elif by == "module":
        for position, name in enumerate(parameters):
            groups.setdefault(module_of(name), []).append(position)
    else:
        try:
            pattern = re.compile(by)
        except re.error as error:
            raise InvalidArgumentError(f"{by!r} is not a valid regular expression: {error}.") from None
        for position, name in enumerate(parameters):
            match = pattern.search(name)
            if match:
                label = match.group(1) if pattern.groups else match.group(0)
                # An empty name would look like no group.
                if label:
                    groups.setdefault(label, []).append(position)
    if not groups:
        raise InvalidArgumentError(
            f"No parameter falls into a group of by={by!r}; use global, module, parameter, coordinate, or an "
            f"expression that matches names such as {parameters[0] if parameters else 'none'}."
        )
    return groups
