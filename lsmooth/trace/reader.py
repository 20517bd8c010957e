"""`Trace`: reads the measured numbers of a trace, and derives local Lipschitz constants from them.

Nothing here needs torch. A file can be read while it is being written, and after its writer was killed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from lsmooth.errors import InvalidArgumentError, unknown_name
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
        path: Path of the file.
        format_version: The format that the trace was written in.
        metadata: Facts of the run: the root attributes of the file, decoded.
        parameters: Names of the parameter tensors, in the network's order.
        parameter_sizes: Number of elements of each parameter tensor, int64 (p,).
        gammas: Positions between x_t and x_{t+1} at which gradients were evaluated, float64 (g,).
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
        """Return the histogram of all coordinates of a parameter tensor over gradients and local Lipschitz constants.

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
        """The followed coordinates, a DataFrame: name, parameter, index (position in the flattened tensor)."""
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
        """Return local Lipschitz constants and gradient norms of groups of parameters, as arrays.

        For a group of parameter tensors S, with Delta(gamma) = grad f(x_t + gamma d) - grad f(x_t),

            smoothness = max over gamma of ‖Delta_S(gamma)‖ / ‖gamma d_S‖,  grad_norm = ‖grad_S f(x_t)‖

        (the paper, Section 5.2; Zhang et al. 2020, Section H.3). For `by="coordinate"`,

            smoothness = max over gamma of |Delta_j(gamma)| / |gamma d_j|,
            grad_norm = min(|grad_j f(x_t)|, |grad_j f(x_t + gamma d)|) at that gamma.

        In another geometry, displacements are measured in its norm, and gradients and their changes in the dual norm:

            norm="linf": largest absolute entry for displacements, 1-norm for gradients (sign methods, Adam);
            norm="spectral": spectral norm of each matrix for displacements, and the largest one of a group; nuclear
            norm for gradients, and the sum over a group (Muon, Scion; Bernstein and Newhouse 2024). A convolution's
            kernel is a matrix with a row for each output channel. A vector is a matrix of one column, both of whose
            norms are its 2-norm.

        Args:
            by: "global", "module", "parameter", "coordinate", a mapping from parameter name to group name, or a
                regular expression whose first group names the group.
            displacement: "layer" divides by the group's own displacement, "global" by that of all parameters (the
                form of Assumption 2). For `by="coordinate"`, only "layer" is defined.
            endpoint: For `by="coordinate"`, use gamma = 1 alone, the definition of Figure 3.
            norm: "l2", or a geometry that the run was recorded with (`Recorder(norms=...)`). For `by="coordinate"`, it
                makes no difference.

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

        `noise_share` is the share of rounding in the change of gradient, and `noisy` says whether it spoils the point.
        Groups of parameters have further columns if the trace has them: see `Field.column` in `lsmooth.trace.layout`.
        Arguments and errors are those of `cloud`.
        """
        points = self.cloud(by, displacement=displacement, endpoint=endpoint, norm=norm)
        return tables.smoothness(self, by, points)

    def curvature(self, by: By = "global", *, norm: str = "l2") -> pd.DataFrame:
        """Return curvature along the steps by group of parameters S, since format 1.2.

        With g = grad f(x_t) and Delta(gamma) = grad f(x_t + gamma d) - g, and d_S in the group's own norm,

            steepness = -⟨g_S, d_S⟩ / (‖g_S‖ ‖d_S‖) with ‖g_S‖ in the dual norm: 1 for a step of steepest descent in
            this norm, below 1 for any other step, and below 0 for a step uphill (Bernstein and Newhouse 2024);
            edge_ratio = ⟨Delta_S(1), d_S⟩ / -⟨g_S, d_S⟩: on a quadratic, the step raises the loss if it is above 2
            (generalized batch sharpness over its threshold; Andreyev and Beneventano 2024); needs `endpoint`;
            directional_GAMMA = ⟨Delta_S(gamma), d_S⟩ / (gamma ‖d_S‖²), and directional, the largest of them including
            x_{t+1} (directional smoothness; Mishkin et al. 2024);
            loss_based = 2 (f(x_{t+1}) - f(x_t) - ⟨g, d⟩) / ‖d‖², for "global" only, and loss_based_trusted, whether
            rounding of the losses is below a tenth of f(x_{t+1}) - f(x_t) - ⟨g, d⟩.

        Args:
            by: "global", "module", "parameter", a mapping from parameter name to group name, or a regular expression.
            norm: The geometry of the norm ‖d_S‖; see `cloud`.

        Returns:
            One row for each step and group: step, group, these columns, usable.

        Raises:
            InvalidArgumentError: No parameter falls into any group.
            TraceError: The trace lacks what is asked for, or is damaged.
        """
        return curvature(self, by, norm)

    def blocks(self) -> pd.DataFrame:
        """Return the curvature along the steps of each block of layers S moved alone, since format 1.2.

        With d_S the block's part of the step d, and every other layer left at x_t,

            own = ⟨grad_S f(x_t + d_S) - grad_S f(x_t), d_S⟩, which is ⟨d_S, H_SS d_S⟩ on a quadratic;
            others = ⟨grad_S f(x_{t+1}) - grad_S f(x_t), d_S⟩ - own, due to the steps of other layers; needs `endpoint`;
            own_smoothness = ‖grad_S f(x_t + d_S) - grad_S f(x_t)‖ / ‖d_S‖, in the 2-norm;
            smoothness = ‖grad_S f(x_{t+1}) - grad_S f(x_t)‖ / ‖d_S‖, for comparison; needs `endpoint`.

        Returns:
            One row for each block and each step at which blocks were moved: step, group, these columns, usable.

        Raises:
            TraceError: The trace was recorded without `blocks=`, or is damaged.
        """
        return blocks(self)

    def critical_lr(self) -> pd.DataFrame:
        """Return the largest learning rate of each step at which its loss does not rise, since format 1.2.

        `critical_gamma` is the first gamma, possibly beyond 1, at which f(x_t + gamma d) is above f(x_t). It is 0 if
        the loss rises from the start (⟨grad f(x_t), d⟩ >= 0), and infinite if the loss is not above f(x_t) up to gamma
        = 1024. The critical learning rate of each parameter group is lr times critical_gamma (Kalra and Barkeshli
        2023). On a quadratic, critical_gamma = 2 / edge_ratio.

        Returns:
            One row a step: step, critical_gamma, critical_lr (with several groups critical_lr_0, critical_lr_1, …),
            usable.

        Raises:
            TraceError: The trace was recorded without `critical=True`, or is damaged.
        """
        return critical(self)

    def gradient_norm(self, by: By = "global", *, norm: str = "l2") -> pd.DataFrame:
        """Return ‖grad_S f(x_t)‖ of each group S of parameters: step, group, grad_norm.

        Args:
            by: As for `cloud`; for "coordinate", |grad_j f(x_t)|.
            norm: The geometry in whose dual norm gradients are measured, as for `cloud`.
        """
        return tables.gradient_norm(self, by, norm)

    def to_frame(self, rows: slice | None = None) -> pd.DataFrame:
        """Return one row a measured step: step, time, loss, lr, gradient norm, step norm, smoothness, status.

        With `Recorder(critical=True)` also critical_gamma and critical_lr; see `critical_lr`.

        Args:
            rows: The measured steps to read; all by default.
        """
        return tables.frame(self, rows)

    def to_xarray(self) -> xarray.Dataset:
        """Return the whole trace as an `xarray.Dataset` with dimensions step, gamma, parameter, group, coordinate.

        Variables in a group of the file have its name as a prefix: `coordinate_grad`, `coordinate_displacement`, ….

        Raises:
            TraceError: xarray is not installed (extra `xarray`).
        """
        return tables.dataset(self)

    def status_counts(self) -> dict[str, int]:
        """Return the number of measured steps with each flag, without flags that no step has."""
        return {str(flag.name).lower(): count for flag in Status if (count := int(((self.status & flag) != 0).sum()))}


def check_trace(trace: object) -> None:
    """Raise InvalidArgumentError for what is no open trace, such as the path of one."""
    if not isinstance(trace, Trace):
        raise InvalidArgumentError(f"{trace!r:.200} is no open trace; give lsmooth.Trace(path).")
