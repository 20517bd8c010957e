"""The layout of a trace file: names, dimensions and meanings of its datasets, shared by writer and reader.

Each dataset is one `Field`, each geometry one `Geometry`; all other code asks these two tables.

A trace is one HDF5 file that is also a valid netCDF-4 file. `docs/trace-format.md` describes it for other tools.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import IntFlag
from typing import Any, Literal

from lsmooth.join import Join

FORMAT = "lsmooth-trace"
FORMAT_VERSION = "1.2"
FIRST_FORMAT = "1.0"
# An attribute of the file, for users of h5dump and other general tools.
COMMENT = (
    "An optimizer step goes from x_t to x_{t+1} = x_t + d. The local Lipschitz constant of the gradient along it is "
    "the maximum over gamma of total_grad_diff / (gamma * total_step_norm), to be held against total_grad_norm; that "
    "of one parameter tensor is the same of grad_diff, step_norm and grad_norm. Rows whose status is exactly 1 are "
    "measured well."
)
COORDINATE_GROUP = "coordinate"

RECENT_GROUP = "recent"
DENSITY_GROUP = "density"

# Rows of a chunk along `step`, and the most parameters or coordinates in a chunk. Both are small, so that a single step
# or a single parameter can be read without much of the rest. Rows that do not fill a chunk yet wait in `recent`.
CHUNK_STEPS = 32
CHUNK_WIDTH = 64

# An estimate is spoiled if rounding is above this share of its change of gradient: independent rounding of 30 % makes
# it 5 % too large.
NOISE_SHARE = 0.3


def version_number(version: str) -> tuple[int, int]:
    """Return the major and minor number of a format version, by which versions are compared.

    Raises:
        ValueError: The version is not two numbers separated by a point.
    """
    match = re.fullmatch(r"(\d{1,6})\.(\d{1,6})", version)
    if match is None:
        raise ValueError(f"its format version reads {version[:40]!r}")
    return int(match[1]), int(match[2])


class Status(IntFlag):
    """Flags of a measured step; only steps whose status is exactly `MEASURED` enter fits."""

    MEASURED = 1  # measured well: no other flag is set
    NO_DISPLACEMENT = 2  # x_{t+1} equals x_t: lr 0, or a skipped step
    BELOW_RESOLUTION = 4  # rounding of x_t + gamma d exceeds 1 % of ‖gamma d‖
    NON_FINITE = 8  # a loss, gradient or estimate is NaN or infinite
    MOVED = 16  # parameters changed between backward and step, so that the gradient is not that at x_t
    OTHER_GRADIENT = 32  # the step used gradients that the recorder did not see, or they were edited unseen
    NOT_REPEATED = 64  # evaluating the loss again raised, an input had changed, or the gradient at x_t differed
    PARTIAL = 128  # the optimizer also stepped parameters that are not in the trace
    NOISY = 256  # rounding is more than 30 % of the change of gradient in the estimate


# "own" stands for each tensor's own kind, in the geometry "layers".
NormKind = Literal["l2", "l1", "linf", "nuclear", "spectral", "own"]


@dataclass(frozen=True)
class Geometry:
    """One geometry: displacements are measured in a norm, gradients and their changes in its dual.

    Attributes:
        name: Its name as the argument `norm=`.
        displacement: The norm of displacements.
        gradient: The dual norm, of gradients.
        displacement_join: How displacement norms of tensors join to that of a group.
        gradient_join: How gradient norms of tensors join to that of a group.
        sharded: The same two joins for shards of a tensor.
        words: The two norms in words, for `long_name`.
        dual_symbol: TeX subscript of the dual norm.
        label: Label in figures; empty for the default geometry.
        since: The first format with this geometry.
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
    since: str = FIRST_FORMAT

    def dataset(self, quantity: str) -> str:
        """Return the name of a quantity's dataset in this geometry; the default geometry has no prefix."""
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
            since="1.2",
        ),
    )
}
# The norms that a tensor's own norm may be.
LAYER_NORMS = ("l2", "linf", "spectral")
# Names of all geometries, first l2, which is always measured.
NORMS = tuple(GEOMETRIES)


@dataclass(frozen=True)
class Field:
    """One dataset.

    Attributes:
        name: Name in the file.
        dims: Names of the dimensions.
        kind: Kind of number: "int", "uint16", "uint8", "float64", or "real", which is float64 if the model has float64
            parameters, and else float32.
        units: Unit of the numbers.
        description: Meaning, kept in the file as `long_name`.
        join: How the ranks' values join to that of the whole.
        since: The first format with this dataset; traces of earlier formats lack it.
        needs: What a run must measure to have this dataset: words of "endpoint", "coordinates", "noise", "critical",
            "blocks" and names of geometries; empty for a dataset of every run.
        total_of: The dataset by parameter tensor that the writer joins into this one, so that the most common questions
            need only a small part of the file; empty for a measured dataset.
        column: Column in tables: of `Trace.to_frame` for fields along `step`, or along `step` and `group`; of
            `Trace.smoothness`, joined over the tensors of a group, for fields along `step` and `parameter`.
        finite: Whether the numbers of well measured steps must be finite.
        share: Name of a further column of `Trace.smoothness`, and the dataset whose joined norm is divided by this
            one's; None for none.
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
        """Say whether traces of a format have this dataset, if the run measured it."""
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
    of_step, of_gradient = geometry.sharded

    def field(
        quantity: str, dims: tuple[str, ...], meaning: str, join: Join, also: str = "", since: str = FIRST_FORMAT
    ) -> Field:
        needed, since = f"{needs} {also}".strip(), max(since, geometry.since, key=version_number)
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
        # The noise in the 2-norm is an older field of its own, in `FIELDS`.
        *(() if geometry.name == "l2" else (noise,)),
    )


def geometry_fields() -> tuple[Field, ...]:
    """Return the fields of all geometries but l2, whose fields stand in `FIELDS` one by one."""
    return tuple(field for geometry in GEOMETRIES.values() if geometry.name != "l2" for field in _of_geometry(geometry))


def _of_step(name: str, description: str, join: Join = Join.SAME, **others: Any) -> Field:
    """Return a field of one number a step."""
    return Field(name, ("step",), "float64", "1", description, join, **others)


def _by_tensor(name: str, description: str, join: Join, **others: Any) -> Field:
    """Return a field of one number for each step and parameter tensor."""
    return Field(name, ("step", "parameter"), "real", "1", description, join, **others)


_GRAD_NORM, _STEP_NORM, _GRAD_DIFF, _GRAD_DIFF_NEXT = _of_geometry(GEOMETRIES["l2"])
# All datasets along `step`, in the order in which they are appended. `step` is the last, so that it counts a row only
# when all of the row is in the file.
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
    _of_step(
        "loss_next",
        "f(x_{t+1}) on the same batch with the same randomness",
        Join.MEAN,
        needs="endpoint",
        column="loss_next",
    ),
    _of_step("slope", "scalar product of grad f(x_t) and d, since format 1.1", Join.SUM, since="1.1"),
    _by_tensor(
        "weight_norm",
        "2-norm of x_t, by parameter tensor, since format 1.2",
        Join.NORM,
        since="1.2",
        column="weight_norm",
        share=("update_ratio", "step_norm"),
    ),
    Field("lr", ("step", "group"), "float64", "1", "learning rate of each parameter group", column="lr"),
    _of_step(
        "critical_gamma",
        "first gamma, also beyond 1, at which f(x_t + gamma d) is above f(x_t); 0 where the scalar product of "
        "grad f(x_t) and d is not negative, infinite where there is none up to 1024, NaN where it was not found",
        since="1.2",
        needs="critical",
        column="critical_gamma",
        finite=False,
    ),
    Field("loss_along", ("step", "gamma"), "float64", "1", "f(x_t + gamma d), d = x_{t+1} - x_t", Join.MEAN),
    _GRAD_NORM,
    _by_tensor("grad_noise", "standard deviation of the probes' gradients at x_t, norm-wise", Join.NORM, needs="noise"),
    _STEP_NORM,
    _GRAD_DIFF,
    _GRAD_DIFF_NEXT,
    _of_step(
        "total_grad_norm",
        "2-norm of grad f(x_t), all parameter tensors together",
        total_of="grad_norm",
        column="grad_norm",
    ),
    _of_step(
        "total_step_norm", "2-norm of d, all parameter tensors together", total_of="step_norm", column="step_norm"
    ),
    Field(
        "total_grad_diff",
        ("step", "gamma"),
        "float64",
        "1",
        "2-norm of grad f(x_t + gamma d) - grad f(x_t), all parameter tensors together",
        total_of="grad_diff",
    ),
    _of_step(
        "grad_diff_noise",
        "2-norm of the rounding in grad f(x_t + gamma d) - grad f(x_t) at the gamma of the estimate, all parameter "
        "tensors together",
        since="1.2",
        column="noise",
        finite=False,
    ),
    _of_step(
        "rounding_bound",
        "upper bound of a gradient's rounding error by the arithmetic of the loss, as a share of its 2-norm",
        since="1.2",
    ),
    *geometry_fields(),
    _by_tensor("curvature/slope", "scalar product of grad f(x_t) and d, by parameter tensor", Join.SUM, since="1.2"),
    Field(
        "curvature/change",
        ("step", "gamma", "parameter"),
        "real",
        "1",
        "scalar product of grad f(x_t + gamma d) - grad f(x_t) and d, by parameter tensor",
        Join.SUM,
        since="1.2",
    ),
    _by_tensor(
        "curvature/change_next",
        "scalar product of grad f(x_{t+1}) - grad f(x_t) and d, by parameter tensor",
        Join.SUM,
        since="1.2",
        needs="endpoint",
    ),
    _by_tensor(
        "blocks/change",
        "scalar product of grad f(x_t + d_S) - grad f(x_t) and d_S, by parameter tensor, d_S the step of the tensor's "
        "block alone; NaN at steps where blocks were not moved",
        Join.SUM,
        since="1.2",
        needs="blocks",
        finite=False,
    ),
    _by_tensor(
        "blocks/grad_diff",
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
        measured: Words of `Field.needs` that the run measures.
        version: The trace's format.
    """
    found = [field for field in FIELDS if field.belongs_to(version) and measured.issuperset(field.needs.split())]
    if version_number(version) >= (1, 2):
        return found
    # Earlier formats have only eight flags.
    return [replace(field, kind="uint8") if field.name == "status" else field for field in found]


def chunk_shape(field: Field, sizes: dict[str, int]) -> tuple[int, ...]:
    """Return the chunk shape of a field; `sizes` has the length of every dimension except `step`."""
    widths = {name: min(size, CHUNK_WIDTH) if name != "gamma" else size for name, size in sizes.items()}
    return (CHUNK_STEPS, *(max(1, widths[name]) for name in field.dims[1:]))
