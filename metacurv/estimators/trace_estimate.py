"""What a curvature measurement returns."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TraceEstimate:
    """A trace with its standard error.

    Attributes:
        value: the trace, in units of the loss over the parameters' units squared.
        stderr: standard error of ``value`` over probes: sample standard deviation (n - 1) over sqrt(n). nan with one probe,
            which tells nothing about its own error; 0 where the value is exact.
        n_samples: samples (probes) drawn, 0 where the value is exact.
        per_parameter: name -> that parameter's part of the trace; the parts add up to ``value``. A parameter without
            curvature (unused, or one the gradient is constant in) has 0; frozen parameters are left out. Empty where the method
            gives the total only.
        per_parameter_stderr: name -> standard error of that part.
        method: how it was measured, e.g. "hutchinson".
        kind: of which matrix, "hessian" or "ggn".
        seed: the seed its probes came from.
        per_layer: name of the module -> the sum over its own parameters; filled by ``estimate_trace``.
        per_layer_stderr: name -> standard error of that sum.
        why: why this method ran, and not a faster one; filled by ``estimate_trace``.
        converged: whether the standard error that was asked for was reached (true where none was).
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
