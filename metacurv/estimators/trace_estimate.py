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
        n_samples: probes drawn.
        per_parameter: name -> that parameter's part of the trace; the parts add up to ``value``. A parameter without
            curvature (unused, or one the gradient is constant in) has 0; frozen parameters are left out.
        per_parameter_stderr: name -> standard error of that part.
        method: how it was measured, e.g. "hutchinson".
        kind: of which matrix, e.g. "hessian".
        seed: the seed its probes came from.
    """

    value: float
    stderr: float
    n_samples: int
    per_parameter: dict[str, float] = field(repr=False)
    per_parameter_stderr: dict[str, float] = field(repr=False)
    method: str
    kind: str
    seed: int

    def __str__(self) -> str:
        plural = "s" if self.n_samples != 1 else ""
        return (
            f"tr({self.kind}) = {self.value:.6g} +- {self.stderr:.2g} "
            f"({self.method}, {self.n_samples} probe{plural})"
        )
