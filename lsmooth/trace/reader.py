"""Read a trace: the numbers as they were measured, and the local Lipschitz constants derived from them.

Nothing here needs torch. A file can be read while it is being written, and after its writer was killed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lsmooth.errors import InvalidArgumentError, TraceError, unknown_name
from lsmooth.estimators import coordinate_lipschitz, joined_norms, local_lipschitz
from lsmooth.trace import header_sum
from lsmooth.trace.attributes import from_json, get_attribute, get_attributes
from lsmooth.trace.cloud import Cloud
from lsmooth.trace.density import Counts, Density, read_density, read_edges
from lsmooth.trace.grouping import By, group_parameters
from lsmooth.trace.layout import CHUNK_STEPS, DENSITY_GROUP, FIELDS, FORMAT, FORMAT_VERSION, GEOMETRIES, Status
from lsmooth.trace.lock import is_being_written
from lsmooth.trace.recent import read_closed, read_recent
from lsmooth.trace.superblock import Mended, imprint, missing_bytes, needs_mending

if TYPE_CHECKING:
    import xarray

Displacement = Literal["layer", "global"]
# Elements that one pass over a large dataset holds at a time.
_BLOCK_ELEMENTS = 1 << 23
# Seconds to wait between looks at what a writer changes just then; after the last of them it is taken as it is.
_PAUSES = (0.0, 0.0, 0.0, 0.01, 0.01, 0.02, 0.02, 0.05, 0.05, 0.1, 0.1, 0.2, 0.4, 0.8, None)


class Trace:
    """A trace file, opened for reading.

    Args:
        path: The file that a `Recorder` has written or is writing.

    Raises:
        TraceError: The file is missing, is not a trace, is damaged, or was written by a newer lsmooth.

    Attributes:
        path: Where the file is.
        metadata: What run this was: the root attributes of the file, decoded.
        parameters: Names of the parameter tensors, in the network's order.
        parameter_sizes: Number of elements of each, int64 (p,).
        gammas: Positions between x_t and x_{t+1} at which gradients were taken, float64.
        coordinate_names: The followed coordinates, as `parameter[index]`.

    Example:
        >>> trace = lsmooth.Trace("run.h5")  # doctest: +SKIP
        >>> trace.smoothness(by="module")  # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._counts: Counts | None = None
        self._open()

    def _open(self) -> None:
        """Open the file and read all that is not along `step`."""
        for pause in _PAUSES:
            # Both are asked first: a writer may have been at work on the very bytes, and have ended since.
            writing, before = self._is_being_written(), imprint(self.path)
            try:
                self._file = _opened(self.path)
                with self._reading("header"):
                    self._read_header()
                # What HDF5 holds of a file that has grown meanwhile is not all of one moment.
                if pause is None or imprint(self.path) == before:
                    return
                self.close()
            except BaseException as error:
                self.close()
                moving = writing or imprint(self.path) != before
                if not isinstance(error, TraceError) or pause is None or not moving:
                    raise
            time.sleep(pause)

    def _read_header(self) -> None:
        self._check_format()
        self.metadata: dict[str, Any] = {name: from_json(value) for name, value in get_attributes(self._file).items()}
        self.parameters: list[str] = _strings(self._file["parameter"])
        self.parameter_sizes: NDArray[np.int64] = self._file["parameter_size"][:]
        self.gammas: NDArray[np.float64] = self._file["gamma"][:]
        self._fields = {field.name for field in FIELDS if field.name in self._file}
        self.coordinate_names: list[str] = (
            _strings(self._file["coordinate/coordinate"]) if "coordinate/grad" in self._fields else []
        )
        self._check_shapes()
        # Of a row that was being appended when the run was killed, some datasets have more than others.
        self._whole = min(self._file[name].shape[0] for name in self._fields)
        self._recent = read_recent(self._file, self._whole)
        self._closed = read_closed(self._file)
        if self._closed is None:
            self._check_chunks()
        if self._closed is not None and self._closed[0] != self._whole:
            raise ValueError(f"it was closed with {self._closed[0]} rows, and has {self._whole}")
        self._length = self._whole + len(self._recent)

    def _check_chunks(self) -> None:
        """Refuse datasets that count rows which they do not hold: HDF5 would make these up, of zeros.

        A copy made while the trace grew has that if it took the file's parts in another order than from first to last.
        """
        for name in self._fields:
            dataset = self._file[name]
            lengths = (self._whole, *dataset.shape[1:])
            wanted = math.prod(-(-length // chunk) for length, chunk in zip(lengths, dataset.chunks, strict=True))
            if dataset.id.get_num_chunks() < wanted:
                raise ValueError(f"{name} lacks rows that it counts, as in a copy made while they were written")

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        model = self.metadata.get("model", "model")
        well = int((self.status == Status.MEASURED).sum())
        return (
            f"Trace({str(self.path)!r}: {model}, {len(self.parameters)} parameter tensors, "
            f"{len(self)} measured steps, {well} of them well)"
        )

    def close(self) -> None:
        """Close the file; what was read before stays valid."""
        with contextlib.suppress(Exception):
            self._file.close()

    @property
    def state(self) -> Literal["complete", "being written", "cut off"]:
        """Whether the run has closed the file, is at work on it, or ended without closing it.

        A run that has ended since this trace was opened or refreshed, with more than is known here, still counts as at
        work: `refresh` brings the rest.
        """
        if self._is_being_written():
            return "being written"
        if self._closed is None and self._closed_now() is not None:
            return "being written"
        return "cut off" if self._closed is None else "complete"

    def _closed_now(self) -> tuple[int, int] | None:
        try:
            return read_closed(self._file)
        except (OSError, RuntimeError, KeyError, ValueError):
            return None

    @property
    def next_step(self) -> int:
        """Optimizer step that a run which continues this trace goes on with, as far as the file knows."""
        if self._closed is not None:
            return self._closed[1]
        return int(self.steps[-1]) + 1 if len(self) else 0

    def refresh(self) -> int:
        """Look at the file again, for what was written since, and return how many measured steps there are now.

        A resumed run puts a new file in the old one's place; it is taken up then.

        Raises:
            TraceError: The file is gone, or is damaged.
        """
        self.close()
        self._open()
        for name in ("steps", "time", "status", "loss"):
            self.__dict__.pop(name, None)
        self._counts = None
        return self._length

    def _is_being_written(self) -> bool:
        try:
            return self.path.is_file() and is_being_written(self.path)
        except OSError:
            return False

    # --- the numbers as they stand in the file ---

    def read(self, name: str, rows: slice | None = None, columns: slice | None = None) -> NDArray[Any]:
        """Return a dataset of the file, or some rows (measured steps) of it.

        Args:
            name: Name of the dataset, such as "grad_norm" or "coordinate/grad".
            rows: Which rows, counted in measured steps; all of them by default.
            columns: Which entries of the last dimension (parameter tensors, coordinates); all of them by default.

        Raises:
            TraceError: The trace has no such dataset, or it is damaged.
        """
        if name not in self._fields:
            raise TraceError(
                f"{self.path} has no {name}; it holds {', '.join(sorted(self._fields))} (see `lsmooth info`)."
            )
        start, stop, _ = (slice(None) if rows is None else rows).indices(self._length)
        with self._reading(name):
            values = self._read_whole(name, start, min(stop, self._whole), columns)
            if stop > self._whole:
                newest = self._recent[name][max(start - self._whole, 0) : stop - self._whole]
                values = np.concatenate([values, newest if columns is None else newest[..., columns]])
            return values

    def _read_whole(self, name: str, start: int, stop: int, columns: slice | None) -> NDArray[Any]:
        part = slice(start, stop) if columns is None else (slice(start, stop), ..., columns)
        for pause in _PAUSES:
            writing = self._is_being_written()
            try:
                return np.asarray(self._file[name][part])
            except OSError:
                if pause is None or not writing:
                    raise
            time.sleep(pause)
        raise AssertionError("the last look returns or raises")

    def has(self, name: str) -> bool:
        """Say whether the trace holds a dataset."""
        return name in self._fields

    @cached_property
    def steps(self) -> NDArray[np.int64]:
        """Optimizer step index of each measured step, int64 (n,)."""
        return self.read("step")

    @cached_property
    def time(self) -> NDArray[np.float64]:
        """Seconds since the run began, without the gaps before it was resumed, float64 (n,)."""
        return self.read("time")

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        """Bit flags of each measured step (`lsmooth.trace.layout.Status`), uint8 (n,)."""
        return self.read("status")

    @cached_property
    def loss(self) -> NDArray[np.float64]:
        """f(x_t) of each measured step, float64 (n,)."""
        return self.read("loss")

    @property
    def lr(self) -> NDArray[np.float64]:
        """Learning rate of each parameter group at each measured step, float64 (n, groups)."""
        return self.read("lr")

    @property
    def has_densities(self) -> bool:
        """Whether all coordinates were counted (`Recorder(densities=True)`)."""
        return f"{DENSITY_GROUP}/counts" in self._file

    def density(self, parameter: str) -> Density:
        """Return how all coordinates of a parameter tensor spread over gradients and local Lipschitz constants.

        Args:
            parameter: Name of the tensor.

        Raises:
            InvalidArgumentError: There is no such tensor.
            TraceError: The trace has no densities, or they are damaged.
        """
        if parameter not in self.parameters:
            raise unknown_name("parameter", parameter, self.parameters)
        position = self.parameters.index(parameter)
        found = self.density_counts()
        with self._reading("density"):
            edges = read_edges(self._file)
        counts = found.counts[position]
        points = int(self.parameter_sizes[position]) * found.steps
        return Density(
            parameter=parameter,
            grad_edges=edges["grad"],
            smoothness_edges=edges["smoothness"],
            counts=counts,
            steps=found.steps,
            left_out=points - int(counts.sum()),
        )

    def density_counts(self) -> Counts:
        """Return the counts of all parameter tensors together; see `density`."""
        if not self.has_densities:
            raise TraceError(f"{self.path} has no densities; record with densities=True to count all coordinates.")
        if self._counts is None:
            with self._reading("density"):
                self._counts = read_density(self._file)
        return self._counts

    @property
    def coordinates(self) -> pd.DataFrame:
        """The followed coordinates: name, parameter, index (position in the flattened tensor)."""
        if not self.coordinate_names:
            return pd.DataFrame({"name": [], "parameter": [], "index": []})
        with self._reading("coordinate"):
            owner = self._file["coordinate/parameter"][:]
            index = self._file["coordinate/index"][:]
        return pd.DataFrame(
            {
                "name": self.coordinate_names,
                "parameter": [self.parameters[position] for position in owner],
                "index": index,
            }
        )

    # --- what is derived from them ---

    def cloud(
        self,
        by: By = "global",
        *,
        displacement: Displacement = "layer",
        endpoint: bool = False,
        norm: str = "l2",
    ) -> Cloud:
        """Return local Lipschitz constants and gradient norms as arrays.

        For a group of parameter tensors S, with Delta(gamma) = grad f(x_t + gamma d) - grad f(x_t),

            smoothness = max over gamma of ‖Delta_S(gamma)‖ / ‖gamma d_S‖,  grad_norm = ‖grad_S f(x_t)‖

        (the paper, Section 5.2; Zhang et al. 2020, Section H.3). For `by="coordinate"`,

            smoothness = max over gamma of |Delta_j(gamma)| / |gamma d_j|,
            grad_norm = min(|grad_j f(x_t)|, |grad_j f(x_t + gamma d)|) at that gamma.

        In another geometry, displacements are measured in its norm, gradients and their changes in the dual one:

            norm="linf": largest absolute entry, and 1-norm (sign methods, Adam);
            norm="spectral": spectral norm of each matrix, the largest of a group's, and nuclear norm, the sum of a
            group's (Muon, Scion; Bernstein and Newhouse 2024). A convolution's kernel is the matrix of its output
            channels; a vector is a matrix of one column, both of whose norms are its 2-norm.

        Args:
            by: "global", "module", "parameter", "coordinate", a mapping from parameter name to group name, or a
                regular expression whose first group names the group.
            displacement: "layer" divides by the group's own displacement, "global" by that of all parameters (the
                form of Assumption 2). Coordinates know only their own.
            endpoint: For `by="coordinate"`, use gamma = 1 alone, the definition of Figure 3.
            norm: "l2", or a geometry that the run was recorded with (`Recorder(norms=...)`). For `by="coordinate"`, all
                are the same.

        Raises:
            InvalidArgumentError: No parameter falls into any group, or the arguments do not go together.
            TraceError: The trace lacks what is asked for, or is damaged.
        """
        if displacement not in ("layer", "global"):
            raise InvalidArgumentError(f"displacement={displacement!r} is neither 'layer' nor 'global'.")
        self._check_norm(norm)
        if by == "coordinate":
            if displacement != "layer":
                raise InvalidArgumentError(
                    f"displacement={displacement!r} is not defined for by='coordinate': a coordinate's change of "
                    "gradient is divided by its own displacement; leave displacement out."
                )
            groups, smoothness, grad_norm = self._coordinate_estimates(endpoint)
        elif endpoint:
            raise InvalidArgumentError("endpoint=True is defined for by='coordinate' only.")
        else:
            groups, smoothness, grad_norm = self._norm_estimates(by, displacement, norm)
        kind = by if isinstance(by, str) else "mapping" if isinstance(by, Mapping) else "regex"
        if kind not in ("global", "module", "parameter", "coordinate", "mapping"):
            kind = "regex"
        lr = self.lr
        return Cloud(
            by=kind,
            groups=groups,
            steps=self.steps,
            smoothness=smoothness,
            grad_norm=grad_norm,
            status=self.status,
            loss=self.loss,
            lr=lr[:, 0] if lr.shape[1] else np.full(len(self), np.nan),
            norm=norm,
        )

    def smoothness(
        self,
        by: By = "global",
        *,
        displacement: Displacement = "layer",
        endpoint: bool = False,
        norm: str = "l2",
    ) -> pd.DataFrame:
        """Return the points of `cloud` as a DataFrame: step, group, smoothness, grad_norm, loss, lr, usable."""
        return self.cloud(by, displacement=displacement, endpoint=endpoint, norm=norm).to_frame()

    def gradient_norm(self, by: By = "global", *, norm: str = "l2") -> pd.DataFrame:
        """Return ‖grad_S f(x_t)‖ of each group S of parameters: step, group, grad_norm.

        Args:
            by: As for `cloud`; for "coordinate", |grad_j f(x_t)|.
            norm: As for `cloud`: the geometry in whose dual norm gradients are measured.
        """
        self._check_norm(norm)
        if by == "coordinate":
            groups = tuple(self.coordinate_names)
            values = np.abs(self.read("coordinate/grad").astype(np.float64))
        else:
            members = group_parameters(self.parameters, by)
            groups = tuple(members)
            geometry = GEOMETRIES[norm]
            if by == "global" and norm == "l2":
                values = self.read("total_grad_norm")[:, None]
            else:
                values = joined_norms(
                    self.read(geometry.dataset("grad_norm")), list(members.values()), geometry.gradient_join
                )
        return pd.DataFrame(
            {
                "step": np.repeat(self.steps, len(groups)),
                "group": pd.Categorical.from_codes(np.tile(np.arange(len(groups)), len(self)), categories=list(groups)),
                "grad_norm": values.ravel(),
            }
        )

    def to_frame(self, rows: slice | None = None) -> pd.DataFrame:
        """Return one row a measured step: step, time, loss, lr, gradient norm, step norm, smoothness, status.

        Args:
            rows: Which measured steps, all of them by default; no others are read.
        """
        columns: dict[str, Any] = {name: self.read(name, rows) for name in ("step", "time", "loss")}
        if self.has("loss_next"):
            columns["loss_next"] = self.read("loss_next", rows)
        lr = self.read("lr", rows)
        for group in range(lr.shape[1]):
            columns["lr" if lr.shape[1] == 1 else f"lr_{group}"] = lr[:, group]
        columns["grad_norm"] = self.read("total_grad_norm", rows)
        columns["step_norm"] = self.read("total_step_norm", rows)
        changed = self.read("total_grad_diff", rows)[:, :, None]
        smoothness = local_lipschitz(changed, columns["step_norm"][:, None], self.gammas)[:, 0]
        columns["smoothness"] = smoothness
        columns["status"] = self.read("status", rows)
        well = columns["status"] == Status.MEASURED
        columns["usable"] = well & np.isfinite(smoothness) & np.isfinite(columns["grad_norm"])
        return pd.DataFrame(columns)

    def to_xarray(self) -> xarray.Dataset:
        """Return the whole trace as an `xarray.Dataset` with dimensions step, gamma, parameter, group, coordinate.

        Variables of the group `coordinate` in the file are called `coordinate_grad`, `coordinate_displacement`, ….

        Raises:
            TraceError: xarray is not installed (extra `xarray`).
        """
        try:
            import xarray
        except ImportError:
            raise TraceError("xarray is not installed; pip install 'lsmooth[xarray]'.") from None
        coordinates: dict[str, Any] = {
            "step": self.steps,
            "gamma": self.gammas,
            "parameter": self.parameters,
            "group": np.arange(self.read("lr", slice(0, 0)).shape[1]),
            "parameter_size": ("parameter", self.parameter_sizes),
        }
        if self.coordinate_names:
            coordinates["coordinate"] = self.coordinate_names
        variables = {
            field.key: (field.dims, self.read(field.name), {"long_name": field.description, "units": field.units})
            for field in FIELDS
            if self.has(field.name) and field.name != "step"
        }
        plain = {
            name: value if isinstance(value, (str, int, float)) else json.dumps(value)
            for name, value in self.metadata.items()
        }
        return xarray.Dataset(variables, coordinates, plain)

    def status_counts(self) -> dict[str, int]:
        """Return how many measured steps carry each flag, flags that none carries left out."""
        return {str(flag.name).lower(): count for flag in Status if (count := int(((self.status & flag) != 0).sum()))}

    def _blocks(self, width: int) -> Iterator[slice]:
        """Cut the measured steps into runs of rows that fit in memory together, `width` elements a row."""
        # Whole chunks, so that none is read twice.
        rows = max(1, _BLOCK_ELEMENTS // max(1, width) // CHUNK_STEPS) * CHUNK_STEPS
        for start in range(0, self._length, rows):
            yield slice(start, min(start + rows, self._length))

    def _check_norm(self, norm: str) -> None:
        if norm not in GEOMETRIES:
            raise unknown_name("norm", norm, GEOMETRIES)
        if not self.has(GEOMETRIES[norm].dataset("grad_diff")):
            raise TraceError(
                f"{self.path} was recorded without the {norm} norm; record with norms=('l2', {norm!r}) to have it."
            )

    def _norm_estimates(
        self, by: By, displacement: Displacement, norm: str
    ) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64]]:
        members = group_parameters(self.parameters, by)
        if by == "global" and norm == "l2":
            moved = self.read("total_step_norm")[:, None]
            changed = self.read("total_grad_diff")[:, :, None]
            return tuple(members), local_lipschitz(changed, moved, self.gammas), self.read("total_grad_norm")[:, None]
        positions = list(members.values())
        smoothness = np.full((len(self), len(members)), np.nan)
        grad_norm = np.full((len(self), len(members)), np.nan)
        everything = [list(range(len(self.parameters)))]
        geometry = GEOMETRIES[norm]
        primal, dual = geometry.displacement_join, geometry.gradient_join
        # No more is read than from the first tensor of any group to the last.
        first = min(min(group) for group in positions)
        some = slice(first, max(max(group) for group in positions) + 1)
        positions = [[position - first for position in group] for group in positions]
        for rows in self._blocks(len(self.gammas) * (some.stop - first)):
            grad_norm[rows] = joined_norms(self.read(geometry.dataset("grad_norm"), rows, some), positions, dual)
            if displacement == "layer":
                moved = joined_norms(self.read(geometry.dataset("step_norm"), rows, some), positions, primal)
            else:
                moved = joined_norms(self.read(geometry.dataset("step_norm"), rows), everything, primal)
            changed = joined_norms(self.read(geometry.dataset("grad_diff"), rows, some), positions, dual)
            smoothness[rows] = local_lipschitz(changed, moved, self.gammas)
        return tuple(members), smoothness, grad_norm

    def _coordinate_estimates(self, endpoint: bool) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64]]:
        if not self.coordinate_names:
            raise TraceError(
                f"{self.path} follows no coordinates; record with coordinates=4 to estimate by coordinate."
            )
        if endpoint and not self.has("coordinate/grad_next"):
            raise TraceError(f"{self.path} was recorded without the endpoint; record with endpoint=True.")
        width = len(self.coordinate_names)
        smoothness = np.full((len(self), width), np.nan)
        smaller = np.full((len(self), width), np.nan)
        name, gammas = ("coordinate/grad_next", np.ones(1)) if endpoint else ("coordinate/grad_along", self.gammas)
        # A thirty-second of what fits in memory fits in the processor's cache. Process time with it, over that without
        # (4,000 steps, medians of 6): 0.50 for 600 coordinates, 0.85 for 200, reading included.
        for rows in self._blocks(32 * len(gammas) * width):
            along = self.read(name, rows)
            smoothness[rows], smaller[rows] = coordinate_lipschitz(
                self.read("coordinate/grad", rows),
                along[:, None, :] if endpoint else along,
                self.read("coordinate/displacement", rows),
                gammas,
            )
        return tuple(self.coordinate_names), smoothness, smaller

    # --- the file ---

    def _check_format(self) -> None:
        try:
            found = get_attribute(self._file, "format")
        except (KeyError, ValueError):
            found = None
        if found != FORMAT:
            raise TraceError(
                f"{self.path} is an HDF5 file, but not an lsmooth trace; give a file that a Recorder wrote."
            )
        version = str(get_attribute(self._file, "format_version"))
        if not re.fullmatch(r"\d+\.\d+", version):
            raise TraceError(f"{self.path} is damaged: its format version reads {version!r}.")
        if int(version.split(".")[0]) > int(FORMAT_VERSION.split(".")[0]):
            writer = get_attribute(self._file, "lsmooth_version")
            raise TraceError(
                f"{self.path} has trace format {version}, this lsmooth reads up to {FORMAT_VERSION}; "
                f"upgrade lsmooth to {writer} or later to read it."
            )

    def _check_shapes(self) -> None:
        sizes = {
            "gamma": len(self.gammas),
            "parameter": len(self.parameters),
            "group": len(self._file["group"]),
            "coordinate": len(self.coordinate_names),
        }
        if header_sum.header_sum(self._file) != get_attribute(self._file, header_sum.NAME):
            raise ValueError("it does not match its checksum")
        for field in FIELDS:
            if field.name in self._fields:
                expected = tuple(sizes[name] for name in field.dims[1:])
                if self._file[field.name].shape[1:] != expected:
                    raise ValueError(f"{field.name} has not the dimensions {', '.join(field.dims)}")

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Turn whatever HDF5 says about a damaged or vanished file into one sentence."""
        try:
            yield
        except (TraceError, InvalidArgumentError):
            raise
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            reason = str(error).strip("'\" ").split("\n")[0] or type(error).__name__
            raise TraceError(
                f"{self.path} is damaged or incomplete: {what} cannot be read ({reason}); "
                "use a copy of it, or record again."
            ) from error


def _opened(path: Path) -> h5py.File:
    if not path.exists():
        raise TraceError(f"There is no file {path}; give the trace that a Recorder or `lsmooth train` wrote.")
    if path.is_dir():
        raise TraceError(f"{path} is a folder; give the trace file itself.")
    if not path.is_file():
        raise TraceError(f"{path} is not a regular file; give a trace that a Recorder or `lsmooth train` wrote.")
    try:
        with path.open("rb") as file:
            head = file.read(48)
        missing, mend = missing_bytes(path), needs_mending(path)
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror}.") from error
    if not head:
        raise TraceError(f"{path} is empty; give a trace that a Recorder or `lsmooth train` wrote.")
    if head[:8] != b"\x89HDF\r\n\x1a\n":
        raise TraceError(f"{path} is not an HDF5 file; give a trace that a Recorder or `lsmooth train` wrote.")
    try:
        # Not with swmr=True, which reads damaged structures again and again, for years.
        file = h5py.File(Mended(path) if mend else path, "r")
        # Of a file that was copied while it grew, the end may only be said to lie further on.
        if missing is None or _has_all_chunks(file, missing[0]):
            return file
        file.close()
    except (OSError, RuntimeError, ValueError) as error:
        if missing is not None:
            raise _cut_short(path, *missing) from error
        raise TraceError(
            f"{path} is damaged and cannot be opened ({str(error).splitlines()[0]}); use a copy of it, or record again."
        ) from error

    raise _cut_short(path, *missing)


def _cut_short(path: Path, there: int, stated: int) -> TraceError:
    return TraceError(
        f"{path} is damaged: only {there} of its {stated} bytes are there; copy it again from its source."
    )


def _has_all_chunks(file: h5py.File, size: int) -> bool:
    """Say whether all chunks of a file lie within its first `size` bytes."""
    found = True

    def look(name: str, item: Any) -> None:
        nonlocal found
        if isinstance(item, h5py.Dataset) and item.chunks is not None:
            item.id.chunk_iter(within)

    def within(chunk: Any) -> None:
        nonlocal found
        found = found and chunk.byte_offset + chunk.size <= size

    file.visititems(look)
    return found


def _strings(dataset: h5py.Dataset) -> list[str]:
    return [value.decode("utf-8") for value in dataset[:].tolist()]
