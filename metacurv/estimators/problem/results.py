"""The result of a curvature measurement."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from metacurv.estimators.problem import trace_display

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class TraceEstimate:
    """A trace with its standard error.

    Attributes:
        value: the trace, in units of the loss over the parameters' units squared.
        stderr: the standard error of ``value`` over probes: sample standard deviation (n - 1) over sqrt(n). It is nan with one
            probe, which tells nothing about its own error, and 0 where the value is exact.
        n_samples: the number of samples (probes) drawn, 0 where the value is exact.
        per_parameter: each parameter's part of the trace, by its name; the parts add up to ``value``. A parameter without
            curvature (unused, or one the gradient is constant in) has 0; frozen parameters are left out.
        per_parameter_stderr: the standard error of each part, by the parameter's name.
        method: the name of the method that measured it, e.g. "hutchinson".
        kind: the matrix, "hessian" or "ggn" (generalized Gauss-Newton).
        seed: the seed of the probes.
        per_layer: the sum over each module's own parameters, by the module's name; filled by ``estimate_trace``.
        per_layer_stderr: the standard error of each sum, by the module's name.
        why: the reason for this method, and against faster ones; filled by ``estimate_trace``.
        converged: False where ``rtol`` was given and the standard error did not come down to it.
    """

    value: float
    stderr: float
    n_samples: int
    per_parameter: dict[str, float] = field(repr=False)
    per_parameter_stderr: dict[str, float] = field(repr=False)
    method: str
    kind: str
    seed: int
    per_layer: dict[str, float] = field(default_factory=dict, repr=False)
    per_layer_stderr: dict[str, float] = field(default_factory=dict, repr=False)
    why: str = ""
    converged: bool = True

    def __str__(self) -> str:
        if trace_display.is_exact(self):
            return f"tr({self.kind}) = {self.value:.6g} ({self.method})"
        plural = "s" if self.n_samples != 1 else ""
        return (
            f"tr({self.kind}) = {self.value:.6g} +- {self.stderr:.2g} "
            f"({self.method}, {self.n_samples} probe{plural})"
        )

    def _repr_html_(self) -> str:
        """Returns what a notebook shows: the estimate, and its largest layers with their errors."""
        return trace_display.as_html(self)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the trace by layer, or by parameter where it has no layers, as horizontal bars with their standard errors.

        The model's first layer is at the top. Where there are more than 20, the largest are drawn, and one pale bar without
        an error stands for the sum of the others.

        Args:
            ax: matplotlib axes to draw into; a new figure where none are given.

        Returns:
            The axes, to be changed or saved: ``estimate.plot().figure.savefig("trace.png")``.

        Raises:
            ImportError: matplotlib is not installed.

        Examples:
            >>> import torch
            >>> from metacurv import estimate_trace
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
            >>> x, y = torch.ones(4, 2), torch.tensor([0, 1, 2, 0])
            >>> axes = estimate_trace(model, torch.nn.CrossEntropyLoss(), x, y).plot()
            >>> [label.get_text() for label in axes.get_yticklabels()]
            ['0', '2']
        """
        return trace_display.draw(self, ax)
