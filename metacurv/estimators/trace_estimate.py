"""The result of a curvature measurement."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TraceEstimate:
    """A trace with its standard error.

    Attributes:
        value: the trace, in units of the loss over the parameters' units squared.
        stderr: the standard error of ``value`` over probes: sample standard deviation (n - 1) over sqrt(n). It is nan with one
            probe, which tells nothing about its own error, and 0 where the value is exact.
        n_samples: the number of samples (probes) drawn, 0 where the value is exact.
        per_parameter: each parameter's part of the trace, by its name; the parts add up to ``value``. A parameter without
            curvature (unused, or one the gradient is constant in) has 0; frozen parameters are left out. The dict is empty
            where the method gives the total only.
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
        if self.stderr == 0 and self.n_samples == 0:
            return f"tr({self.kind}) = {self.value:.6g} ({self.method})"
        plural = "s" if self.n_samples != 1 else ""
        return (
            f"tr({self.kind}) = {self.value:.6g} +- {self.stderr:.2g} "
            f"({self.method}, {self.n_samples} probe{plural})"
        )
