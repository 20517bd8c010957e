"""Read a trace: the numbers as they were measured, and the local Lipschitz constants derived from them.

Nothing here needs torch. A file can be read while it is being written, and after its writer was killed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from lsmooth.errors import unknown_name
from lsmooth.trace import clouds, opening, tables
from lsmooth.trace.cloud import Cloud
from lsmooth.trace.clouds import Displacement
from lsmooth.trace.curvature import blocks, critical, curvature
from lsmooth.trace.density import Density, read_edges
from lsmooth.trace.file import TraceFile
from lsmooth.trace.grouping import By
from lsmooth.trace.html import summary_html
from lsmooth.trace.layout import Status

if TYPE_CHECKING:
    import xarray

__all__ = ["Displacement", "Trace"]


class Trace(TraceFile):
    """A trace file, opened for reading.

    Args:
        path: The file that a `Recorder` has written or is writing.

    Raises:
        TraceError: The file is missing, is not a trace, is damaged, or was written by a newer lsmooth.

    Attributes:
        path: Where the file is.
        format_version: The format that it was written in.
        metadata: What run this was: the root attributes of the file, decoded.
        parameters: Names of the parameter tensors, in the network's order.
        parameter_sizes: Number of elements of each, int64 (p,).
        gammas: Positions between x_t and x_{t+1} at which gradients were taken, float64.
        coordinate_names: The followed coordinates, as `parameter[index]`.

    Examples:
        >>> trace = lsmooth.Trace("run.h5")  # doctest: +SKIP
        >>> trace.smoothness(by="module")  # doctest: +SKIP
    """

    def __repr__(self) -> str:
        model = self.metadata.get("model", "model")
        well = int((self.status == Status.MEASURED).sum())
        return (
            f"Trace({str(self.path)!r}: {model}, {len(self.parameters)} parameter tensors, "
            f"{len(self)} measured steps, {well} of them well)"
        )

    def _repr_html_(self) -> str:
        return summary_html(self)

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
        with opening.reading(self.path, "density"):
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

    @property
    def coordinates(self) -> pd.DataFrame:
        """The followed coordinates: name, parameter, index (position in the flattened tensor)."""
        if not self.coordinate_names:
            return pd.DataFrame({"name": [], "parameter": [], "index": []})
        owner = self.coordinate_owners
        with opening.reading(self.path, "coordinate"):
            index = self._file["coordinate/index"][:]
        return pd.DataFrame(
            {
                "name": self.coordinate_names,
                "parameter": [self.parameters[position] for position in owner],
                "index": index,
            }
        )

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
        return clouds.cloud(self, by, displacement=displacement, endpoint=endpoint, norm=norm)

    def smoothness(
        self,
        by: By = "global",
        *,
        displacement: Displacement = "layer",
        endpoint: bool = False,
        norm: str = "l2",
    ) -> pd.DataFrame:
        """Return the points of `cloud` as a DataFrame: step, group, smoothness, grad_norm, loss, lr, usable.

        Rounding is the share `noise_share` of the change of gradient, and has spoiled points that are `noisy`. Groups
        of parameters have further columns where the trace has them: see `Field.column` in `lsmooth.trace.layout`.
        """
        points = self.cloud(by, displacement=displacement, endpoint=endpoint, norm=norm)
        return tables.smoothness(self, by, points)

    def curvature(self, by: By = "global", *, norm: str = "l2") -> pd.DataFrame:
        """Return curvature along the steps by group of parameters S, since format 1.2.

        With g = grad f(x_t) and Delta(gamma) = grad f(x_t + gamma d) - g, and d_S in the group's own norm,

            steepness = -⟨g_S, d_S⟩ / (‖g_S‖ ‖d_S‖), the gradient in the dual norm: 1 for a step of steepest descent in
            this norm, below 1 for any other, below 0 for a step uphill (Bernstein and Newhouse 2024);
            edge_ratio = ⟨Delta_S(1), d_S⟩ / -⟨g_S, d_S⟩: on a quadratic, above 2 the step raises the loss (generalized
            batch sharpness over its threshold; Andreyev and Beneventano 2024); with `endpoint` only;
            directional_GAMMA = ⟨Delta_S(gamma), d_S⟩ / (gamma ‖d_S‖²), and directional, the largest of them, x_{t+1}
            included (directional smoothness; Mishkin et al. 2024);
            loss_based = 2 (f(x_{t+1}) - f(x_t) - ⟨g, d⟩) / ‖d‖², for "global" alone, and loss_based_trusted, whether
            the losses' rounding is below a tenth of what it is made of.

        Args:
            by: "global", "module", "parameter", a mapping from parameter name to group name, or a regular expression.
            norm: The geometry whose norm ‖d_S‖ is; see `cloud`.

        Returns:
            One row a step and group: step, group, these columns, usable.

        Raises:
            InvalidArgumentError: No parameter falls into any group.
            TraceError: The trace lacks what is asked for, or is damaged.
        """
        return curvature(self, by, norm)

    def blocks(self) -> pd.DataFrame:
        """Return where the curvature along the steps sits, by block of layers S, since format 1.2.

        With d_S the block's part of the step d, and every other layer left at x_t,

            own = ⟨grad_S f(x_t + d_S) - grad_S f(x_t), d_S⟩, which is ⟨d_S, H_SS d_S⟩ on a quadratic;
            others = ⟨grad_S f(x_{t+1}) - grad_S f(x_t), d_S⟩ - own: what the other layers' steps add, with `endpoint`;
            own_smoothness = ‖grad_S f(x_t + d_S) - grad_S f(x_t)‖ / ‖d_S‖, in the 2-norm;
            smoothness = ‖grad_S f(x_{t+1}) - grad_S f(x_t)‖ / ‖d_S‖, to be held against it, with `endpoint`.

        Returns:
            One row a block, and step at which blocks were moved: step, group, these columns, usable.

        Raises:
            TraceError: The trace was recorded without `blocks=`, or is damaged.
        """
        return blocks(self)

    def critical_lr(self) -> pd.DataFrame:
        """Return how large the learning rate of each step could have been before its loss rose, since format 1.2.

        `critical_gamma` is the first gamma, also beyond 1, at which f(x_t + gamma d) is above f(x_t): 0 where the step
        goes up from the start (⟨grad f(x_t), d⟩ >= 0), infinite where the loss is not above up to gamma = 1024. The
        critical learning rate is lr times it (Kalra and Barkeshli 2023), by parameter group. On a quadratic,
        critical_gamma = 2 / edge_ratio.

        Returns:
            One row a step: step, critical_gamma, critical_lr (of several groups critical_lr_0, critical_lr_1, …),
            usable.

        Raises:
            TraceError: The trace was recorded without `critical=True`, or is damaged.
        """
        return critical(self)

    def gradient_norm(self, by: By = "global", *, norm: str = "l2") -> pd.DataFrame:
        """Return ‖grad_S f(x_t)‖ of each group S of parameters: step, group, grad_norm.

        Args:
            by: As for `cloud`; for "coordinate", |grad_j f(x_t)|.
            norm: As for `cloud`: the geometry in whose dual norm gradients are measured.
        """
        return tables.gradient_norm(self, by, norm)

    def to_frame(self, rows: slice | None = None) -> pd.DataFrame:
        """Return one row a measured step: step, time, loss, lr, gradient norm, step norm, smoothness, status.

        With `Recorder(critical=True)` also critical_gamma and critical_lr; see `critical_lr`.

        Args:
            rows: Which measured steps, all of them by default; no others are read.
        """
        return tables.frame(self, rows)

    def to_xarray(self) -> xarray.Dataset:
        """Return the whole trace as an `xarray.Dataset` with dimensions step, gamma, parameter, group, coordinate.

        Variables of the group `coordinate` in the file are called `coordinate_grad`, `coordinate_displacement`, ….

        Raises:
            TraceError: xarray is not installed (extra `xarray`).
        """
        return tables.dataset(self)

    def status_counts(self) -> dict[str, int]:
        """Return how many measured steps carry each flag, flags that none carries left out."""
        return {str(flag.name).lower(): count for flag in Status if (count := int(((self.status & flag) != 0).sum()))}
