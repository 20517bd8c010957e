"""Finds variables of a closure whose graph was made before the closure was called, and cannot be computed again."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from lsmooth.replay.microbatch import Closure, nodes_of

# Containers with more items than this are not searched.
_FEW = 64


def graphs_read(closure: Closure) -> list[tuple[str, Tensor]]:
    """Return names and tensors of the closure's variables that have a graph before the closure is called.

    Tensors that the closure itself assigns to its variables (its output, for a log) come later, and are no problem.
    """
    return [(name, tensor) for name, tensor in _tensors_read(closure) if tensor.grad_fn is not None]


def made_outside(read: Sequence[tuple[str, Tensor]], loss: Tensor) -> str | None:
    """Return the error about a variable whose earlier graph is part of the loss's graph; None for none.

    Args:
        read: Result of `graphs_read` before the closure was called.
        loss: The loss that the closure has returned; its graph has not been freed.
    """
    if not read:
        return None
    inside = nodes_of(loss)
    for name, tensor in read:
        if tensor.grad_fn in inside:
            return (
                f"The closure given to recorder.backward reads {name}, whose graph was made outside of it, so that "
                "the loss cannot be evaluated again; call the model inside the closure: "
                "recorder.backward(lambda: loss_fn(model(inputs), targets))."
            )
    return None


def _tensors_read(closure: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors of the closure's variables, which hold them directly or in small containers."""
    for name, value in _variables(closure):
        items: list[Any] = [value]
        if isinstance(value, (list, tuple, dict)) and len(value) <= _FEW:
            items = list(value.values()) if isinstance(value, dict) else list(value)
        yield from ((name, item) for item in items if isinstance(item, Tensor))


def _variables(closure: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(closure, functools.partial):
        yield from ((str(i + 1), value) for i, value in enumerate(closure.args))
        yield from closure.keywords.items()
        yield from _variables(closure.func)
    elif isinstance(closure, types.MethodType):
        yield from _variables(closure.__func__)
        yield from ((f"self.{name}", value) for name, value in getattr(closure.__self__, "__dict__", {}).items())
    elif isinstance(closure, types.FunctionType):
        code, names = closure.__code__, closure.__globals__
        for name, cell in zip(code.co_freevars, closure.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:
                continue
        yield from ((name, names[name]) for name in code.co_names if name in names)
        defaults = closure.__defaults__ or ()
        yield from zip(code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount], defaults, strict=True)
        yield from (closure.__kwdefaults__ or {}).items()
