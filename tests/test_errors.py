"""Errors: what callers catch, and sentences that name the mend."""

import pytest
import torch

from lsmooth import errors
from lsmooth.errors import LsmoothError, compiler_failure, unknown_name

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LsmoothError)]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_is_caught_as_one_of_lsmooths(kind):
    with pytest.raises(LsmoothError, match="a sentence"):
        raise kind("a sentence")


def test_callers_that_know_pythons_own_errors_catch_them_too():
    assert issubclass(errors.InvalidArgumentError, ValueError)
    assert issubclass(errors.OptimizerError, RuntimeError)
    assert issubclass(errors.InputChangedError, errors.RecorderError)
    assert issubclass(errors.TraceWarning, UserWarning)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("scater", "There is no kind named 'scater'; did you mean scatter?"),
        ("zzz", "There is no kind named 'zzz'; known are density, edge, scatter."),
    ],
)
def test_an_unknown_name_is_told_the_close_ones_or_all(name, sentence):
    assert str(unknown_name("kind", name, ("scatter", "edge", "density"))) == sentence


def test_why_a_compiler_failed_is_told_from_other_errors():
    assert compiler_failure(ValueError("no")) is None
    kind = type("BackendCompilerFailed", (Exception,), {"__module__": "torch._dynamo.exc"})
    error = kind("backend='inductor' raised:\nNo C++ compiler\n\nSet TORCHDYNAMO_VERBOSE=1 for more")
    assert compiler_failure(error) == "backend='inductor' raised: No C++ compiler"
    assert compiler_failure(kind("")) == "BackendCompilerFailed"
    # The compiler's own errors are of these modules.
    assert torch._dynamo.exc.BackendCompilerFailed.__module__.startswith("torch._dynamo")
