"""Settings read from text, and names of tasks."""

from dataclasses import dataclass

import pytest
import torch

from lsmooth import tasks
from lsmooth.errors import InvalidArgumentError
from lsmooth.tasks.task import Settings, epoch_generator


@dataclass(frozen=True, kw_only=True)
class Sample(Settings):
    batch_size: int = 4
    epochs: int = 2
    dropout: float = 0.1
    tied: bool = False
    betas: tuple[float, ...] = (0.9, 0.999)
    kind: str = "plain"
    width: int = 8
    heads: int = 2


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("batch_size", "7", 7),
        ("dropout", "2e-1", 0.2),
        ("tied", "true", True),
        ("tied", "no", False),
        ("betas", "0.5,0.9", (0.5, 0.9)),
        ("betas", "(0.5, 0.9)", (0.5, 0.9)),
        ("kind", "other", "other"),
        ("steps", "30", 30),
        ("steps", "none", None),
        ("max_norm", "0.25", 0.25),
    ],
)
def test_settings_are_read_by_their_type(name, text, value):
    changed = getattr(Sample().replaced({name: text}), name)
    assert changed == value
    assert type(changed) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("batch_size", "many", "batch_size=many cannot be read as int"),
        ("batch_size", "1.5", "int"),
        ("batch_size", "none", "int"),
        ("tied", "maybe", "bool"),
        ("droput", "0.1", "did you mean dropout"),
        ("epochs", "0", "epochs=0"),
        ("max_norm", "-1", "max_norm=-1"),
        ("steps", "0", "steps=0"),
        ("report_every", "-2", "report_every=-2 is not a positive number"),
        ("width", "-4", "width=-4 is not a positive number"),
        ("heads", "3", "heads=3 do not divide a width of 8"),
        ("dropout", "1.5", "dropout=1.5 is not a probability"),
        ("dropout", "nan", "dropout=nan is not a finite number"),
    ],
)
def test_a_bad_setting_is_named(name, text, word):
    with pytest.raises(InvalidArgumentError, match=word.replace("(", r"\(")):
        Sample().replaced({name: text})


def test_an_unknown_task_names_the_close_one():
    with pytest.raises(InvalidArgumentError, match="did you mean transformer-encoder"):
        tasks.get("transformer-encode")


def test_epoch_generators_depend_on_seed_and_epoch_alone():
    draws = {(s, e): torch.rand(3, generator=epoch_generator(s, e)) for s in range(3) for e in range(3)}
    assert all(torch.equal(draw, torch.rand(3, generator=epoch_generator(*key))) for key, draw in draws.items())
    assert len({tuple(draw.tolist()) for draw in draws.values()}) == 9
