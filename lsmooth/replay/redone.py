"""What a loop makes of a model's output before its criterion reads it, done again with another output.

A loss that is computed in two calls, of a model and of a criterion, can only be evaluated again where all of its graph
can: the criterion's inputs are traced back, through autograd's graph, to outputs of calls that a recorder knows how to
make again. The operations on the way are few and simple (views, a choice of entries, a softmax); those of `_REDONE` are
done again, and any other is named to the user.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# How far into nested containers tensors are looked for. An object's attributes count as three containers.
_DEPTH = 8
_DEPTH_OF_OBJECT = 3
# Arguments of operations with at most so many entries are copied.
_SMALL = 1 << 16
# So many operations may lie in a row between an output and an input: each is done again by a call within a call.
_MOST_IN_A_ROW = 100
# autograd keeps negative positions as unsigned numbers of 64 bits.
_WRAPS = 1 << 64


class CannotBeRedone(Exception):
    """A tensor's graph comes from where nothing is known of; the argument names the operation that made it."""


@dataclass(frozen=True, eq=False)
class Output:
    """A tensor that a call has returned.

    Attributes:
        call: The call, whatever it is that stands for it.
        position: Which of the tensors in what it returned, in the order of `tensors_in`.
    """

    call: Any
    position: int


@dataclass(frozen=True, eq=False)
class Redone:
    """A tensor that an operation makes of others.

    Attributes:
        operation: Makes it.
        inputs: What it is made of: tensors that stay the same objects, and what has to be made anew.
    """

    operation: Callable[..., Tensor]
    inputs: tuple[Recipe, ...]


Recipe = Output | Redone | Tensor


def made_of(tensor: Tensor, source: Callable[[Any, int], Output | None]) -> Recipe:
    """Return how to make a tensor again.

    Args:
        tensor: Has a graph, which no backward pass has freed.
        source: Returns whose output it is that a node of the graph, and its position there, belongs to; None for none.

    Raises:
        CannotBeRedone: An operation on the way to an output is none of those that are done again, or one too many.
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
    """Return the inputs of an operation that have no gradient, which autograd keeps where the backward reads them."""
    missing = [i for i, value in enumerate(inputs) if value is None]
    if not missing:
        return {}
    if node.name() not in ("MulBackward0", "DivBackward0") or len(inputs) != 2:
        raise CannotBeRedone(node.name())
    kept = [getattr(node, ("_saved_self", "_saved_other")[i], None) for i in missing]
    if any(value is None for value in kept):
        raise CannotBeRedone(node.name())
    dtype = node._input_metadata[0].dtype
    # A number is kept as a scalar of its own dtype, and would decide over that of another scalar.
    constants = [c.to(dtype) if c.dim() == 0 and c.is_floating_point() else c for c in map(_kept, kept)]
    return dict(zip(missing, constants, strict=True))


def make(recipe: Recipe, returned: Callable[[Any], Sequence[Tensor]], made: dict[Recipe, Tensor]) -> Tensor:
    """Make a tensor again.

    Args:
        recipe: How.
        returned: The tensors that a call has returned this time.
        made: What has been made already, which is added to.
    """
    if isinstance(recipe, Tensor):
        return recipe
    if isinstance(recipe, Output):
        return returned(recipe.call)[recipe.position]
    if recipe not in made:
        made[recipe] = recipe.operation(*(make(item, returned, made) for item in recipe.inputs))
    return made[recipe]


def calls_of(recipe: Recipe) -> list[Any]:
    """Return the calls whose outputs a tensor is made of, each once."""
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
    """Return a value in which everything of a kind is replaced; what holds none of it stays the same object.

    Args:
        value: Looked through with its containers, and, less far, with the attributes of its objects.
        kind: What is replaced.
        replace: Returns what stands for it.
        depth: How many containers deep to look.
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
    """Return positions as they were given: negative ones are kept as unsigned numbers."""
    return value - _WRAPS if isinstance(value, int) and value >= _WRAPS // 2 else value


def _kept(value: Any) -> Any:
    """Return an argument as it was given; a small tensor is copied, in case the loop overwrites it."""
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
    """Return what makes an operation whose further arguments are those of these names."""

    def maker(node: Any, position: int) -> Callable[..., Tensor]:
        arguments = [_kept(getattr(node, f"_saved_{name}")) for name in names]
        return lambda value: operation(value, *arguments)

    return maker


def _of_all(operation: Callable[..., Tensor]) -> Callable[[Any, int], Callable[..., Tensor]]:
    """Return what makes an operation of several tensors along one dimension."""

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
    """Return what makes a softmax, which may convert its input on the way."""

    def maker(node: Any, position: int) -> Callable[..., Tensor]:
        dim, dtype = _signed(node._saved_dim), node._input_metadata[position].dtype
        return lambda value: operation(value, dim, dtype=dtype)

    return maker


def _one_of(operation: Callable[..., Sequence[Tensor]], *names: str) -> Callable[[Any, int], Callable[..., Tensor]]:
    """Return what makes an operation that returns several tensors, of which this is one."""

    def maker(node: Any, position: int) -> Callable[..., Tensor]:
        arguments = [_signed(getattr(node, f"_saved_{name}")) for name in names]
        return lambda value: operation(value, *arguments)[position]

    return maker


def _sliced(value: Tensor, dim: int, start: int, end: int, step: int) -> Tensor:
    return value[(slice(None),) * (dim % value.dim()) + (slice(start, end, step),)]


def _indexed(value: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    return value[tuple(slice(None) if index is None else index for index in indices)]


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
