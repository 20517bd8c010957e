"""Any number given to an option either is finite and fits its type, or ends in one sentence, never a traceback."""

import importlib
import math
import warnings

import click
import pytest
import torch
from click.testing import CliRunner
from hostile_values import TEXTS
from hypothesis import HealthCheck, example, given, settings

from lsmooth.cli import COMMANDS, main, numbers
from lsmooth.tasks import task as task_values

# Each example reads a fixture that none of them changes.
SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def commands():
    return {name: importlib.import_module(f"lsmooth.cli.{name}").command for name in COMMANDS}


NUMBERS = [
    pytest.param(command, option, id=f"{name} {option.opts[0]}")
    for name, command in commands().items()
    for option in command.params
    if isinstance(option.type, (click.types.IntParamType, click.types.FloatParamType))
]


def test_there_are_numbers_to_try():
    assert len(NUMBERS) > 20


@pytest.mark.parametrize(("command", "option"), NUMBERS)
@given(text=TEXTS)
@example(text="nan")
@example(text="12345678901234567890")
@example(text="1e308")
@settings(max_examples=40, deadline=None)
def test_a_number_is_finite_and_fits_or_is_refused_in_a_sentence(command, option, text):
    context = click.Context(command)
    try:
        value = option.type_cast_value(context, text)
    except click.BadParameter:
        # A usage error: one sentence, and exit code 2.
        return
    assert math.isfinite(value)
    # float32 and int64, which arithmetic on these numbers must not leave.
    assert abs(value) <= (2**32 if isinstance(value, int) else 3.4e38)


def test_options_and_hyperparameters_have_the_same_bounds():
    """The limits are stated twice, since the commands that only read never load torch."""
    assert numbers.LARGEST_COUNT == task_values.LARGEST_COUNT
    assert numbers.LARGEST_FLOAT == task_values.LARGEST_FLOAT <= torch.finfo(torch.float32).max


# Numeric options of commands that read a trace, with what each needs beside it to have an effect.
READING = {
    ("estimate", "--by"): ["--method=quantile", "--condition=suboptimality"],
    ("estimate", "--q"): ["--method=quantile", "--condition=suboptimality"],
    ("estimate", "--tau"): ["--method=expectile", "--by=module"],
    ("estimate", "--f-low"): ["--method=quantile", "--condition=suboptimality"],
    ("estimate", "--confidence"): ["--condition=power"],
    ("estimate", "--seed"): [],
    ("estimate", "--probe-size"): ["--noise"],
    ("advise", "--beta2"): [],
    ("tail", "--lines"): ["--no-follow"],
    ("tail", "--interval"): ["--no-follow"],
    ("export", "--by"): ["--force", "--output=table.csv"],
    ("plot", "--dpi"): ["--force", "--output=a.png", "--size=2x1.5"],
    ("plot", "--size"): ["--force", "--output=a.png", "--dpi=30"],
}


def test_every_number_of_a_command_that_reads_is_tried():
    reading = {command for command, _ in READING}
    numbers = {
        (name, max(option.opts, key=len))
        for name, command in commands().items()
        for option in command.params
        if name in reading and isinstance(option.type, (click.types.IntParamType, click.types.FloatParamType))
    }
    assert numbers <= set(READING)


@pytest.mark.parametrize(("command", "option"), list(READING))
@given(text=TEXTS)
@example(text="0.9999999999999999")
@example(text="0.999999")
@example(text="1e-300")
@example(text="3e38")
@example(text="-3e38")
@example(text="1e308")
@example(text="-1e308")
@example(text="1000000000")
@example(text="0.5x50")
@example(text="50x50")
@settings(max_examples=15, deadline=None, suppress_health_check=SHARED)
def test_a_command_that_reads_takes_any_value_or_ends_in_a_sentence(
    small_trace, tmp_path, monkeypatch, command, option, text
):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = CliRunner().invoke(main, [command, str(small_trace), *READING[command, option], f"{option}={text}"])
    assert isinstance(done.exception, SystemExit | None), (text, done.exception)
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == bool(done.exit_code)
    assert "nan" not in done.stdout
