"""Names, dimensions and meanings of everything that stands in a trace file: what writer and reader agree on.

A trace is one HDF5 file that is also a valid netCDF-4 file. `docs/trace-format.md` describes it for those who want to
read it with other tools.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

FORMAT = "lsmooth-trace"
FORMAT_VERSION = "1.1"
# For whoever opens a trace with nothing but h5dump at hand.
COMMENT = (
    "An optimizer step goes from x_t to x_{t+1} = x_t + d. The local Lipschitz constant of the gradient along it is "
    "the maximum over gamma of total_grad_diff / (gamma * total_step_norm), to be held against total_grad_norm; that "
    "of one parameter tensor is the same of grad_diff, step_norm and grad_norm. Rows whose status is exactly 1 are "
    "measured well."
)
COORDINATE_GROUP = "coordinate"

RECENT_GROUP = "recent"
DENSITY_GROUP = "density"

# Geometries that smoothness can be measured in; "l2" always is.
NORMS = ("l2", "linf", "spectral")

# Rows of a chunk along `step`, and the most parameters or coordinates in one: a single step and a single parameter
# can both be read without touching much of the rest. Rows that do not fill a chunk yet wait in `recent`.
CHUNK_STEPS = 32
CHUNK_WIDTH = 64


class Status(IntFlag):
    """What became of a measured step; only a step that is `MEASURED` enters fits."""

    MEASURED = 1  # every number of this step is what its name says
    NO_DISPLACEMENT = 2  # x_{t+1} equals x_t: lr 0, or a step that was skipped
    BELOW_RESOLUTION = 4  # rounding of x_t + gamma d exceeds 1 % of ‖gamma d‖
    NON_FINITE = 8  # a loss, gradient or estimate is NaN or infinite
    MOVED = 16  # parameters changed between backward and step, so that gradient and x_t do not belong together
    OTHER_GRADIENT = 32  # the step used gradients that the recorder did not see, or its own were changed unseen


@dataclass(frozen=True)
class Field:
    """One dataset: its name in the file, dimensions, kind of number, unit and meaning.

    `kind` is "int", "float64", or "real": float32, or float64 where the model has float64 parameters.
    """

    name: str
    dims: tuple[str, ...]
    kind: str
    units: str
    description: str

    @property
    def key(self) -> str:
        """The name as an identifier: the path in the file with its slash replaced."""
        return self.name.replace("/", "_")


def _geometry(norm: str, *, displacement: str, gradient: str) -> tuple[Field, ...]:
    """Return the fields of a geometry other than l2: displacements in its norm, gradients in the dual one."""
    matrix = "" if norm != "spectral" else "; a tensor of fewer than two dimensions is a matrix of one column"
    by = f", by parameter tensor{matrix}"
    return (
        Field(f"{norm}/grad_norm", ("step", "parameter"), "real", "1", f"{gradient} of grad f(x_t){by}"),
        Field(f"{norm}/step_norm", ("step", "parameter"), "real", "1", f"{displacement} of d{by}"),
        Field(
            f"{norm}/grad_diff",
            ("step", "gamma", "parameter"),
            "real",
            "1",
            f"{gradient} of grad f(x_t + gamma d) - grad f(x_t){by}",
        ),
    )


# In this order they are appended; `step` comes last, so that a row counts only when all of it is in the file.
FIELDS = (
    Field("time", ("step",), "float64", "s", "seconds since the run began, without the gaps before it was resumed"),
    Field("loss", ("step",), "float64", "1", "f(x_t), the loss of the step"),
    Field("loss_next", ("step",), "float64", "1", "f(x_{t+1}) on the same batch with the same randomness"),
    Field("slope", ("step",), "float64", "1", "scalar product of grad f(x_t) and d, since format 1.1"),
    Field("lr", ("step", "group"), "float64", "1", "learning rate of each parameter group"),
    Field("loss_along", ("step", "gamma"), "float64", "1", "f(x_t + gamma d), d = x_{t+1} - x_t"),
    Field("grad_norm", ("step", "parameter"), "real", "1", "2-norm of grad f(x_t), by parameter tensor"),
    Field(
        "grad_noise",
        ("step", "parameter"),
        "real",
        "1",
        "standard deviation of the probes' gradients at x_t, norm-wise",
    ),
    Field("step_norm", ("step", "parameter"), "real", "1", "2-norm of d, by parameter tensor"),
    Field(
        "grad_diff",
        ("step", "gamma", "parameter"),
        "real",
        "1",
        "2-norm of grad f(x_t + gamma d) - grad f(x_t), by parameter tensor",
    ),
    Field("total_grad_norm", ("step",), "float64", "1", "2-norm of grad f(x_t), all parameter tensors together"),
    Field("total_step_norm", ("step",), "float64", "1", "2-norm of d, all parameter tensors together"),
    Field(
        "total_grad_diff",
        ("step", "gamma"),
        "float64",
        "1",
        "2-norm of grad f(x_t + gamma d) - grad f(x_t), all parameter tensors together",
    ),
    *_geometry("linf", displacement="largest absolute entry", gradient="1-norm"),
    *_geometry("spectral", displacement="spectral norm", gradient="nuclear norm"),
    Field("coordinate/grad", ("step", "coordinate"), "real", "1", "gradient at x_t, followed coordinates"),
    Field("coordinate/displacement", ("step", "coordinate"), "real", "1", "d, followed coordinates"),
    Field(
        "coordinate/grad_along",
        ("step", "gamma", "coordinate"),
        "real",
        "1",
        "gradient at x_t + gamma d, followed coordinates",
    ),
    Field(
        "coordinate/grad_next",
        ("step", "coordinate"),
        "real",
        "1",
        "gradient at x_{t+1}, followed coordinates",
    ),
    Field("status", ("step",), "status", "1", "bit flags, see flag_meanings"),
    Field("step", ("step",), "int", "1", "optimizer step index, counted from 0"),
)
# Fields that a run may be without, and what it then lacks.
ENDPOINT_FIELDS = frozenset({"loss_next", "coordinate/grad_next"})
COORDINATE_FIELDS = frozenset(field.name for field in FIELDS if field.name.startswith(f"{COORDINATE_GROUP}/"))
NOISE_FIELDS = frozenset({"grad_noise"})
# Fields along `step` alone that traces of format 1.0 do not have.
LATER_FIELDS = frozenset({"slope"})
# What the writer joins from norms by parameter tensor, so that the commonest question is answered from a small part of
# the file.
TOTAL_FIELDS = {
    "total_grad_norm": "grad_norm",
    "total_step_norm": "step_norm",
    "total_grad_diff": "grad_diff",
}
NORM_FIELDS = {
    norm: frozenset(field.name for field in FIELDS if field.name.startswith(f"{norm}/")) for norm in NORMS[1:]
}


def chunk_shape(field: Field, sizes: dict[str, int]) -> tuple[int, ...]:
    """Return the chunk shape of a field, given the size of every dimension but `step`."""
    widths = {name: min(size, CHUNK_WIDTH) if name != "gamma" else size for name, size in sizes.items()}
    return (CHUNK_STEPS, *(max(1, widths[name]) for name in field.dims[1:]))
