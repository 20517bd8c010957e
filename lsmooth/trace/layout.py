"""Names, dimensions and meanings of everything that stands in a trace file: what writer and reader agree on.

Each dataset is one `Field`, each geometry one `Geometry`; all other code asks these two tables.

A trace is one HDF5 file that is also a valid netCDF-4 file. `docs/trace-format.md` describes it for those who want to
read it with other tools.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import IntFlag
from typing import Literal

from lsmooth.join import Join

FORMAT = "lsmooth-trace"
FORMAT_VERSION = "1.2"
FIRST_FORMAT = "1.0"
# Shown by h5dump and other tools that know nothing of lsmooth.
COMMENT = (
    "An optimizer step goes from x_t to x_{t+1} = x_t + d. The local Lipschitz constant of the gradient along it is "
    "the maximum over gamma of total_grad_diff / (gamma * total_step_norm), to be held against total_grad_norm; that "
    "of one parameter tensor is the same of grad_diff, step_norm and grad_norm. Rows whose status is exactly 1 are "
    "measured well."
)
COORDINATE_GROUP = "coordinate"

RECENT_GROUP = "recent"
DENSITY_GROUP = "density"

# Rows of a chunk along `step`, and the most parameters or coordinates in one: a single step and a single parameter
# can both be read without touching much of the rest. Rows that do not fill a chunk yet wait in `recent`.
CHUNK_STEPS = 32
CHUNK_WIDTH = 64

# Above this share of the change of gradient that is the estimate, rounding spoils it: 30 % of independent rounding make
# it 5 % too large.
NOISE_SHARE = 0.3


def version_number(version: str) -> tuple[int, int]:
    """Return the major and minor number of a format version; versions are compared by them.

    Raises:
        ValueError: It is not two numbers with a point between.
    """
    match = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", version)
    if match is None:
        raise ValueError(f"its format version reads {version[:40]!r}")
    return int(match[1]), int(match[2])


class Status(IntFlag):
    """What became of a measured step; only a step that is `MEASURED` enters fits."""

    MEASURED = 1  # every number of this step is what its name says
    NO_DISPLACEMENT = 2  # x_{t+1} equals x_t: lr 0, or a step that was skipped
    BELOW_RESOLUTION = 4  # rounding of x_t + gamma d exceeds 1 % of ‖gamma d‖
    NON_FINITE = 8  # a loss, gradient or estimate is NaN or infinite
    MOVED = 16  # parameters changed between backward and step, so that gradient and x_t do not belong together
    OTHER_GRADIENT = 32  # the step used gradients that the recorder did not see, or its own were changed unseen
    NOT_REPEATED = (
        64  # evaluated again, the loss raised an error, an input had changed, or the gradient at x_t differed
    )
    PARTIAL = 128  # the optimizer also stepped parameters that the trace does not have
    NOISY = 256  # rounding is more than 30 % of the change of gradient that the estimate is made of


# "own" is each tensor's own kind, in the geometry of layers.
NormKind = Literal["l2", "l1", "linf", "nuclear", "spectral", "own"]


@dataclass(frozen=True)
class Geometry:
    """One geometry: displacements are measured in a norm, gradients and their changes in its dual.

    Attributes:
        name: What `norm=` calls it.
        displacement: The norm of displacements.
        gradient: Its dual, the norm of gradients.
        displacement_join: How displacements of tensors join into a group's.
        gradient_join: How gradients of tensors join into a group's.
        sharded: The same two for a tensor's shards.
        words: The two norms in words, for `long_name`.
        dual_symbol: What TeX puts behind the bars of a gradient's norm.
        label: What figures call it; empty for the default.
    """

    name: str
    displacement: NormKind
    gradient: NormKind
    displacement_join: Join
    gradient_join: Join
    sharded: tuple[Join, Join]
    words: tuple[str, str]
    dual_symbol: str
    label: str

    def dataset(self, quantity: str) -> str:
        """Return the name of a quantity's dataset in this geometry: the default one's has no prefix."""
        return quantity if self.name == "l2" else f"{self.name}/{quantity}"


_SINGULAR = "; a tensor of fewer than two dimensions is a matrix of one column"
GEOMETRIES: dict[str, Geometry] = {
    geometry.name: geometry
    for geometry in (
        Geometry("l2", "l2", "l2", Join.NORM, Join.NORM, (Join.NORM, Join.NORM), ("2-norm", "2-norm"), "", ""),
        Geometry(
            "linf",
            "linf",
            "l1",
            Join.MAX,
            Join.SUM,
            (Join.MAX, Join.SUM),
            ("largest absolute entry", "1-norm"),
            "_1",
            r"$\ell_\infty$ geometry",
        ),
        Geometry(
            "spectral",
            "spectral",
            "nuclear",
            Join.MAX,
            Join.SUM,
            (Join.UNKNOWN, Join.UNKNOWN),
            ("spectral norm", "nuclear norm"),
            r"_{\mathrm{nuc}}",
            "spectral geometry",
        ),
        Geometry(
            "layers",
            "own",
            "own",
            Join.MAX,
            Join.SUM,
            (Join.UNKNOWN, Join.UNKNOWN),
            ("the tensor's own norm", "dual of the tensor's own norm"),
            r"_\star",
            "geometry by layer",
        ),
    )
}
# What a tensor's own norm may be.
LAYER_NORMS = ("l2", "linf", "spectral")
# Their names, l2 first, which is always measured.
NORMS = tuple(GEOMETRIES)


@dataclass(frozen=True)
class Field:
    """One dataset.

    Attributes:
        name: Its name in the file.
        dims: Its dimensions.
        kind: Kind of number: "int", "uint16", "uint8", "float64", or "real": float32, or float64 where the model has
            float64 parameters.
        units: Its unit.
        description: Its meaning.
        join: How the ranks' shares make the whole.
        since: The format that it came with. Traces of earlier formats lack it.
        needs: What a run must measure for it to be there: words of "endpoint", "coordinates", "noise", "critical",
            "blocks" and geometries; empty for what every run has.
        total_of: The dataset by parameter tensor that the writer joins into this one, so that the commonest question
            is answered from a small part of the file; empty for what is measured.
        column: Its column in tables: in `Trace.to_frame` for fields along `step`, or along `step` and `group`; in
            `Trace.smoothness`, joined over the tensors of a group, for fields along `step` and `parameter`.
        finite: Whether steps that are measured well have finite numbers there.
        share: A further column of `Trace.smoothness`, and the dataset whose joined norm it is over this one's.
    """

    name: str
    dims: tuple[str, ...]
    kind: str
    units: str
    description: str
    join: Join = Join.SAME
    since: str = FIRST_FORMAT
    needs: str = ""
    total_of: str = ""
    column: str = ""
    finite: bool = True
    share: tuple[str, str] | None = None

    def belongs_to(self, version: str) -> bool:
        """Say whether traces of a format have this dataset, where the run measured it."""
        return version_number(self.since) <= version_number(version)

    @property
    def key(self) -> str:
        """The name as an identifier: the path in the file with its slash replaced."""
        return self.name.replace("/", "_")


def _of_geometry(geometry: Geometry) -> tuple[Field, ...]:
    """Return the fields of a geometry."""
    displacement, gradient = geometry.words
    by = ", by parameter tensor" + (_SINGULAR if geometry.name == "spectral" else "")
    needs = "" if geometry.name == "l2" else geometry.name
    first = "1.2" if geometry.name == "layers" else FIRST_FORMAT
    of_step, of_gradient = geometry.sharded

    def field(
        quantity: str, dims: tuple[str, ...], meaning: str, join: Join, also: str = "", since: str = FIRST_FORMAT
    ) -> Field:
        needed, since = f"{needs} {also}".strip(), max(since, first, key=version_number)
        return Field(geometry.dataset(quantity), dims, "real", "1", f"{meaning}{by}", join, since, needed)

    noise = field(
        "grad_noise",
        ("step", "parameter"),
        f"standard deviation of the probes' gradients at x_t, {gradient}",
        of_gradient,
        also="noise",
        since="1.2",
    )
    return (
        field("grad_norm", ("step", "parameter"), f"{gradient} of grad f(x_t)", of_gradient),
        field("step_norm", ("step", "parameter"), f"{displacement} of d", of_step),
        field(
            "grad_diff",
            ("step", "gamma", "parameter"),
            f"{gradient} of grad f(x_t + gamma d) - grad f(x_t)",
            of_gradient,
        ),
        field(
            "grad_diff_next",
            ("step", "parameter"),
            f"{gradient} of grad f(x_{{t+1}}) - grad f(x_t)",
            of_gradient,
            also="endpoint",
            since="1.2",
        ),
        # The 2-norm's is older than the others', and stands elsewhere.
        *(() if geometry.name == "l2" else (noise,)),
    )


def geometry_fields() -> tuple[Field, ...]:
    """Return the fields of all geometries but the default one, whose own stand elsewhere."""
    return tuple(field for geometry in GEOMETRIES.values() if geometry.name != "l2" for field in _of_geometry(geometry))


_GRAD_NORM, _STEP_NORM, _GRAD_DIFF, _GRAD_DIFF_NEXT = _of_geometry(GEOMETRIES["l2"])
# In this order they are appended; `step` comes last, so that a row counts only when all of it is in the file.
FIELDS = (
    Field(
        "time",
        ("step",),
        "float64",
        "s",
        "seconds since the run began, without the gaps before it was resumed",
        column="time",
    ),
    Field("loss", ("step",), "float64", "1", "f(x_t), the loss of the step", Join.MEAN, column="loss"),
    Field(
        "loss_next",
        ("step",),
        "float64",
        "1",
        "f(x_{t+1}) on the same batch with the same randomness",
        Join.MEAN,
        needs="endpoint",
        column="loss_next",
    ),
    Field(
        "slope",
        ("step",),
        "float64",
        "1",
        "scalar product of grad f(x_t) and d, since format 1.1",
        Join.SUM,
        since="1.1",
    ),
    Field(
        "weight_norm",
        ("step", "parameter"),
        "real",
        "1",
        "2-norm of x_t, by parameter tensor, since format 1.2",
        Join.NORM,
        since="1.2",
        column="weight_norm",
        share=("update_ratio", "step_norm"),
    ),
    Field("lr", ("step", "group"), "float64", "1", "learning rate of each parameter group", column="lr"),
    Field(
        "critical_gamma",
        ("step",),
        "float64",
        "1",
        "first gamma, also beyond 1, at which f(x_t + gamma d) is above f(x_t); 0 where the scalar product of "
        "grad f(x_t) and d is not negative, infinite where there is none up to 1024, NaN where it was not found",
        since="1.2",
        needs="critical",
        column="critical_gamma",
        finite=False,
    ),
    Field("loss_along", ("step", "gamma"), "float64", "1", "f(x_t + gamma d), d = x_{t+1} - x_t", Join.MEAN),
    _GRAD_NORM,
    Field(
        "grad_noise",
        ("step", "parameter"),
        "real",
        "1",
        "standard deviation of the probes' gradients at x_t, norm-wise",
        Join.NORM,
        needs="noise",
    ),
    _STEP_NORM,
    _GRAD_DIFF,
    _GRAD_DIFF_NEXT,
    Field(
        "total_grad_norm",
        ("step",),
        "float64",
        "1",
        "2-norm of grad f(x_t), all parameter tensors together",
        total_of="grad_norm",
        column="grad_norm",
    ),
    Field(
        "total_step_norm",
        ("step",),
        "float64",
        "1",
        "2-norm of d, all parameter tensors together",
        total_of="step_norm",
        column="step_norm",
    ),
    Field(
        "total_grad_diff",
        ("step", "gamma"),
        "float64",
        "1",
        "2-norm of grad f(x_t + gamma d) - grad f(x_t), all parameter tensors together",
        total_of="grad_diff",
    ),
    Field(
        "grad_diff_noise",
        ("step",),
        "float64",
        "1",
        "2-norm of the rounding in grad f(x_t + gamma d) - grad f(x_t) at the gamma of the estimate, all parameter "
        "tensors together",
        since="1.2",
        column="noise",
        finite=False,
    ),
    Field(
        "rounding_bound",
        ("step",),
        "float64",
        "1",
        "upper bound of a gradient's rounding error by the arithmetic of the loss, as a share of its 2-norm",
        since="1.2",
    ),
    *geometry_fields(),
    Field(
        "curvature/slope",
        ("step", "parameter"),
        "real",
        "1",
        "scalar product of grad f(x_t) and d, by parameter tensor",
        Join.SUM,
        since="1.2",
    ),
    Field(
        "curvature/change",
        ("step", "gamma", "parameter"),
        "real",
        "1",
        "scalar product of grad f(x_t + gamma d) - grad f(x_t) and d, by parameter tensor",
        Join.SUM,
        since="1.2",
    ),
    Field(
        "curvature/change_next",
        ("step", "parameter"),
        "real",
        "1",
        "scalar product of grad f(x_{t+1}) - grad f(x_t) and d, by parameter tensor",
        Join.SUM,
        since="1.2",
        needs="endpoint",
    ),
    Field(
        "blocks/change",
        ("step", "parameter"),
        "real",
        "1",
        "scalar product of grad f(x_t + d_S) - grad f(x_t) and d_S, by parameter tensor, d_S the step of the tensor's "
        "block alone; NaN at steps where blocks were not moved",
        Join.SUM,
        since="1.2",
        needs="blocks",
        finite=False,
    ),
    Field(
        "blocks/grad_diff",
        ("step", "parameter"),
        "real",
        "1",
        "2-norm of grad f(x_t + d_S) - grad f(x_t), by parameter tensor, d_S the step of the tensor's block alone",
        Join.NORM,
        since="1.2",
        needs="blocks",
        finite=False,
    ),
    *(
        Field(f"coordinate/{name}", ("step", *dims, "coordinate"), "real", "1", meaning, Join.SUM, needs=needs)
        for name, dims, meaning, needs in (
            ("grad", (), "gradient at x_t, followed coordinates", "coordinates"),
            ("displacement", (), "d, followed coordinates", "coordinates"),
            ("grad_along", ("gamma",), "gradient at x_t + gamma d, followed coordinates", "coordinates"),
            ("grad_next", (), "gradient at x_{t+1}, followed coordinates", "coordinates endpoint"),
        )
    ),
    Field("status", ("step",), "uint16", "1", "bit flags, see flag_meanings", column="status"),
    Field("step", ("step",), "int", "1", "optimizer step index, counted from 0", column="step"),
)


def fields_of(measured: frozenset[str], version: str = FORMAT_VERSION) -> list[Field]:
    """Return the datasets of a trace in the order in which they are appended.

    Args:
        measured: What the run measures; see `Field.needs`.
        version: The trace's format.
    """
    found = [field for field in FIELDS if field.belongs_to(version) and measured.issuperset(field.needs.split())]
    if version_number(version) >= (1, 2):
        return found
    # Earlier formats have eight flags.
    return [replace(field, kind="uint8") if field.name == "status" else field for field in found]


def chunk_shape(field: Field, sizes: dict[str, int]) -> tuple[int, ...]:
    """Return the chunk shape of a field, given the size of every dimension but `step`."""
    widths = {name: min(size, CHUNK_WIDTH) if name != "gamma" else size for name, size in sizes.items()}
    return (CHUNK_STEPS, *(max(1, widths[name]) for name in field.dims[1:]))
