"""Repeats the operations between a model's output and its criterion's input, with another output.

A loss that is computed in two calls, of a model and of a criterion, can be evaluated again only if all of its graph
can. The criterion's inputs are traced back through autograd's graph to the outputs of calls that a recorder can make
again. The operations in between are usually few and simple (views, a choice of entries, a softmax). Those in `_REDONE`
are repeated; any other is an error that names the operation.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Depth to which nested containers are searched for tensors. An object's attributes count as three levels.
_DEPTH = 8
_DEPTH_OF_OBJECT = 3
# Tensor arguments of operations with at most this many elements are copied.
_SMALL = 1 << 16
# At most this many operations in a row are repeated, since `make` recurses once for each.
_MOST_IN_A_ROW = 100
# autograd keeps negative dimensions and indices as unsigned 64-bit integers.
_WRAPS = 1 << 64


class CannotBeRedone(Exception):
    """A tensor's graph contains an operation that cannot be repeated; the argument names the operation."""


@dataclass(frozen=True, eq=False)
class Output:
    """A tensor that a call has returned.

    Attributes:
        call: Any object that stands for the call.
        position: Index of the tensor among the returned ones, in the order of `tensors_in`.
    """

    call: Any
    position: int


@dataclass(frozen=True, eq=False)
class Redone:
    """A tensor that an operation computes from others.

    Attributes:
        operation: Computes the tensor from its inputs.
        inputs: The inputs: tensors that stay the same, and recipes of tensors that are computed again.
    """

    operation: Callable[..., Tensor]
    inputs: tuple[Recipe, ...]


Recipe = Output | Redone | Tensor


def made_of(tensor: Tensor, source: Callable[[Any, int], Output | None]) -> Recipe:
    """Return the recipe by which a tensor can be computed again.

    Args:
        tensor: A tensor with a graph that no backward pass has freed.
        source: Returns the call's output that belongs to a node of the graph and an output number; None for none.

    Raises:
        CannotBeRedone: An operation between the tensor and an output is not in `_REDONE`, or there are too many.
    """
    known: dict[tuple[Any, int], Recipe] = {}

    def recipe(node: Any, position: int, depth: int) -> Recipe:
        if (node, position) not in known:
            found: Recipe | None = source(node, position)
            if found is None:
                variable = getattr(node, "variable", None)
                found = variable if isinstance(variable, Tensor) else redone(node, position, depth)
            known[node, position] = found
        return known[node, position]

    def redone(node: Any, position: int, depth: int) -> Recipe:
        maker = _REDONE.get(node.name())
        if maker is None or depth == _MOST_IN_A_ROW:
            raise CannotBeRedone(node.name())
        operation = maker(node, position)
        parents = node.next_functions
        inputs = [None if parent is None else recipe(parent, index, depth + 1) for parent, index in parents]
        constants = _constants(node, inputs)
        return Redone(operation, tuple(constants.get(i, value) for i, value in enumerate(inputs)))  # type: ignore[misc]

    assert tensor.grad_fn is not None
    return recipe(tensor.grad_fn, tensor.output_nr, 0)


def _constants(node: Any, inputs: Sequence[Recipe | None]) -> dict[int, Tensor]:
    """Return the inputs without a gradient, by position; autograd saves them where the backward pass needs them."""
    missing = [i for i, value in enumerate(inputs) if value is None]
    if not missing:
        return {}
    if node.name() not in ("MulBackward0", "DivBackward0") or len(inputs) != 2:
        raise CannotBeRedone(node.name())
    kept = [getattr(node, ("_saved_self", "_saved_other")[i], None) for i in missing]
    if any(value is None for value in kept):
        raise CannotBeRedone(node.name())
    dtype = node._input_metadata[0].dtype
    # autograd saves a Python number as a scalar tensor, whose own dtype could change that of the result.
    constants = [c.to(dtype) if c.dim() == 0 and c.is_floating_point() else c for c in map(_kept, kept)]
    return dict(zip(missing, constants, strict=True))


def make(recipe: Recipe, returned: Callable[[Any], Sequence[Tensor]], made: dict[Recipe, Tensor]) -> Tensor:
    """Compute a tensor again.

    Args:
        recipe: The tensor's recipe.
        returned: Returns the tensors that a call has returned this time.
        made: Tensors that have been computed already, by recipe; new ones are added.
    """
    if isinstance(recipe, Tensor):
        return recipe
    if isinstance(recipe, Output):
        return returned(recipe.call)[recipe.position]
    if recipe not in made:
        made[recipe] = recipe.operation(*(make(item, returned, made) for item in recipe.inputs))
    return made[recipe]


def calls_of(recipe: Recipe) -> list[Any]:
    """Return the calls whose outputs a recipe uses, each once."""
    if isinstance(recipe, Output):
        return [recipe.call]
    if isinstance(recipe, Tensor):
        return []
    return list(dict.fromkeys(call for item in recipe.inputs for call in calls_of(item)))


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in a value, in its containers and in the attributes of its objects, in a fixed order."""
    found: list[Tensor] = []

    def note(tensor: Any) -> Any:
        found.append(tensor)
        return tensor

    rebuilt(value, Tensor, note)
    return found


def rebuilt(value: Any, kind: type, replace: Callable[[Any], Any], depth: int = _DEPTH) -> Any:
    """Return a value with all instances of a type replaced; parts without such an instance stay the same objects.

    Args:
        value: The value; its containers and, less deeply, the attributes of its objects are searched.
        kind: The type whose instances are replaced.
        replace: Returns the replacement of an instance.
        depth: Number of nested containers to search.
    """
    if isinstance(value, kind):
        return replace(value)
    if depth == 0 or isinstance(value, (str, bytes, Tensor, nn.Module, type)):
        return value
    if isinstance(value, (tuple, list)):
        items = [rebuilt(item, kind, replace, depth - 1) for item in value]
        if all(map(operator.is_, items, value)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, Mapping):
        parts = dict(value)
    elif hasattr(value, "__dict__") and not callable(value):
        parts = vars(value)
    else:
        return value
    further = depth - 1 if isinstance(value, Mapping) else max(0, depth - _DEPTH_OF_OBJECT)
    changed = {name: rebuilt(part, kind, replace, further) for name, part in parts.items()}
    changed = {name: part for name, part in changed.items() if part is not parts[name]}
    if not changed:
        return value
    new = copy.copy(value)
    if isinstance(value, Mapping):
        for name, part in changed.items():
            new[name] = part
    else:
        vars(new).update(changed)
    return new


# --- the operations ---


def _signed(value: Any) -> Any:
    """Return a saved dimension or index as it was given, also a negative one."""
    return value - _WRAPS if isinstance(value, int) and value >= _WRAPS // 2 else value


def _kept(value: Any) -> Any:
    """Return a saved argument as it was given; a small tensor is copied, in case the loop overwrites it."""
    if isinstance(value, (tuple, list)):
        return tuple(_kept(item) for item in value)
    if isinstance(value, Tensor):
        return value.detach().clone() if value.numel() <= _SMALL else value.detach()
    return _signed(value)


def _shaped(node: Any, position: int) -> Callable[..., Tensor]:
    shape = tuple(node._input_metadata[position].shape)
    return lambda value: value.reshape(shape)


def _expanded(node: Any, position: int) -> Callable[..., Tensor]:
    shape = tuple(node._input_metadata[position].shape)
    return lambda value: value.expand(shape)


def _converted(node: Any, position: int) -> Callable[..., Tensor]:
    metadata = node._input_metadata[position]
    return lambda value: value.to(metadata.device, metadata.dtype)


def _with(operation: Callable[..., Tensor], *names: str) -> Callable[[Any, int], Callable[..., Tensor]]:
    """Return a maker of an operation on one tensor, whose further arguments autograd has saved by these names."""

    def maker(node: Any, position: int) -> Callable[..., Tensor]:
        arguments = [_kept(getattr(node, f"_saved_{name}")) for name in names]
        return lambda value: operation(value, *arguments)

    return maker


def _of_all(operation: Callable[..., Tensor]) -> Callable[[Any, int], Callable[..., Tensor]]:
    """Return a maker of an operation on several tensors along one dimension."""

    def maker(node: Any, position: int) -> Callable[..., Tensor]:
        dim = _signed(node._saved_dim)
        return lambda *values: operation(values, dim)

    return maker


def _sum(sign: int) -> Callable[[Any, int], Callable[..., Tensor]]:
    def maker(node: Any, position: int) -> Callable[..., Tensor]:
        operation = torch.add if sign > 0 else torch.sub
        alpha = node._saved_alpha
        return lambda one, other: operation(one, other, alpha=alpha)

    return maker


def _plain(operation: Callable[..., Tensor]) -> Callable[[Any, int], Callable[..., Tensor]]:
    return lambda node, position: operation


def _normalized(operation: Callable[..., Tensor]) -> Callable[[Any, int], Callable[..., Tensor]]:
    """Return a maker of a softmax, which may also convert its input to another dtype."""

    def maker(node: Any, position: int) -> Callable[..., Tensor]:
        dim, dtype = _signed(node._saved_dim), node._input_metadata[position].dtype
        return lambda value: operation(value, dim, dtype=dtype)

    return maker


def _one_of(operation: Callable[..., Sequence[Tensor]], *names: str) -> Callable[[Any, int], Callable[..., Tensor]]:
    """Return a maker of an operation that returns several tensors, of which one is taken."""

    def maker(node: Any, position: int) -> Callable[..., Tensor]:
        arguments = [_signed(getattr(node, f"_saved_{name}")) for name in names]
        return lambda value: operation(value, *arguments)[position]

    return maker


def _sliced(value: Tensor, dim: int, start: int, end: int, step: int) -> Tensor:
    return value[(slice(None),) * (dim % value.dim()) + (slice(start, end, step),)]


def _indexed(value: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    return value[tuple(slice(None) if index is None else index for index in indices)]


# By the name of a node: from the node and an output number, makes the operation to repeat.
_REDONE: dict[str, Callable[[Any, int], Callable[..., Tensor]]] = {
    **dict.fromkeys(("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "UnsqueezeBackward0"), _shaped),
    **dict.fromkeys((f"SqueezeBackward{i}" for i in range(4)), _shaped),
    "ExpandBackward0": _expanded,
    "AliasBackward0": _plain(operator.pos),
    "CloneBackward0": _plain(torch.clone),
    "ToCopyBackward0": _converted,
    "TransposeBackward0": _with(torch.transpose, "dim0", "dim1"),
    "TBackward0": _plain(torch.t),
    "PermuteBackward0": _with(torch.permute, "dims"),
    "SelectBackward0": _with(torch.select, "dim", "index"),
    "SliceBackward0": _with(_sliced, "dim", "start", "end", "step"),
    "UnbindBackward0": _one_of(torch.unbind, "dim"),
    "SplitBackward0": _one_of(torch.split, "split_size", "dim"),
    "IndexBackward0": _with(_indexed, "indices"),
    "IndexSelectBackward0": _with(torch.index_select, "dim", "index"),
    "GatherBackward0": _with(torch.gather, "dim", "index"),
    "SigmoidBackward0": _plain(torch.sigmoid),
    "TanhBackward0": _plain(torch.tanh),
    "ReluBackward0": _plain(torch.relu),
    "ExpBackward0": _plain(torch.exp),
    "LogBackward0": _plain(torch.log),
    "NegBackward0": _plain(operator.neg),
    "PowBackward0": _with(torch.pow, "exponent"),
    "SoftmaxBackward0": _normalized(torch.softmax),
    "LogSoftmaxBackward0": _normalized(torch.log_softmax),
    "LogsumexpBackward0": _with(torch.logsumexp, "dim", "keepdim"),
    "SumBackward0": _plain(torch.sum),
    "SumBackward1": _with(torch.sum, "dim", "keepdim"),
    "MeanBackward0": _plain(torch.mean),
    "MeanBackward1": _with(torch.mean, "dim", "keepdim"),
    "CatBackward0": _of_all(torch.cat),
    "StackBackward0": _of_all(torch.stack),
    "AddBackward0": _sum(1),
    "SubBackward0": _sum(-1),
    "MulBackward0": _plain(torch.mul),
    "DivBackward0": _plain(torch.div),
}
