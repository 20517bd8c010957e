"""The paper's training runs, one module each: data, model, loss and default hyperparameters, read top to bottom."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lsmooth.errors import unknown_name

if TYPE_CHECKING:
    from lsmooth.tasks.task import Task

# Name of a task -> its module and class. The module is imported when the task is asked for.
_HOME = {
    "transformer-encoder": ("lsmooth.tasks.transformer_encoder", "TransformerEncoder"),
    "transformer-translation": ("lsmooth.tasks.transformer_translation", "TranslationTask"),
    "gpt2": ("lsmooth.tasks.gpt2", "GPT2Task"),
    "resnet20": ("lsmooth.tasks.resnet20", "ResNet20Task"),
    "awd-lstm": ("lsmooth.tasks.awd_lstm", "AWDLSTMTask"),
}
NAMES = tuple(_HOME)

__all__ = ["NAMES", "get"]


def get(name: str) -> Task:
    """Return the task of this name.

    Raises:
        InvalidArgumentError: There is no such task; the message names the close ones.
    """
    if name not in _HOME:
        raise unknown_name("task", name, NAMES)
    module, kind = _HOME[name]
    task: Task = getattr(importlib.import_module(module), kind)()
    return task
