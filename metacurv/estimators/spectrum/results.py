"""Results of measurements beyond the trace: a number with its error, eigenvalues, and the diagonal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


class Measured(float):
    """A number with its standard error; it can be used as a plain float.

    Args:
        value: the number.
        stderr: the standard error; 0 where the number is exact.
    """

    def __new__(cls, value: float, stderr: float) -> Measured:
        """Makes the float."""
        return super().__new__(cls, value)

    def __init__(self, value: float, stderr: float) -> None:
        self.stderr = stderr

    def __reduce__(self) -> tuple[type[Measured], tuple[float, float]]:
        """Keeps the error where the number is copied or pickled."""
        return Measured, (float(self), self.stderr)

    @property
    def value(self) -> float:
        """The number as a plain float."""
        return float(self)

    def __repr__(self) -> str:
        error = f"+- {self.stderr:.2g}" if self.stderr else "(exact)"
        return f"{float(self):.6g} {error}"


@dataclass(frozen=True, eq=False)
class TopEigenvalues:
    """The largest eigenvalues of a curvature matrix.

    Attributes:
        values: the eigenvalues, float64 [k] on the host, the largest first, in units of the loss over the parameters' units
            squared.
        residuals: float64 [k]: the matrix has an eigenvalue within ``residuals[i]`` of ``values[i]``, but for rounding in the
            products beyond 16 units in the last place. It is the norm of H v - value v for the unit vector v that was found.
        errors: float64 [k], estimates of the errors of the values: the smaller one of the residual and of its square over the
            distance to the nearest other value.
        vectors: the eigenvectors, [P, k] on the parameters' device, of length 1, where they were asked for, else None; their
            rows are numbered as those of ``curvature_operator``, whose ``to_dict`` splits one by parameter.
        n_products: the number of products with the matrix, 0 where none was needed.
        method: "gram" or "lanczos".
        kind: the matrix, "hessian" or "ggn".
        seed: the seed of the vector that the search starts from.
        why: the reason for this method.
        converged: False where the errors did not come down to ``rtol``.
        per_layer: the eigenvalues of each module's own block, by the module's name, where ``by_layer`` was asked for.
    """

    values: Tensor
    residuals: Tensor
    errors: Tensor
    vectors: Tensor | None = field(repr=False)
    n_products: int
    method: str
    kind: str
    seed: int
    why: str
    converged: bool
    per_layer: Mapping[str, TopEigenvalues] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        pairs = zip(self.values.tolist(), self.errors.tolist(), strict=True)
        shown = ", ".join(f"{value:.6g} +- {error:.2g}" for value, error in pairs)
        plural = "s" if self.n_products != 1 else ""
        how = f"{self.n_products} product{plural}" if self.n_products else "exact"
        return f"eigenvalues({self.kind}) = {shown} ({self.method}, {how})"


class Diagonal(dict[str, Tensor]):
    """The diagonal of a curvature matrix: a tensor of each parameter's shape, by the parameter's name.

    Args:
        values: what the dict holds.
        stderr: the standard errors, by the parameter's name: tensors of the same shapes, 0 where the diagonal is exact.
        per_layer: the sum over each module's own parameters, which is the trace of its block, by the module's name.
        per_layer_stderr: the standard errors of these sums.
        n_samples: the number of samples, 0 where the diagonal is exact.
        method: the name of the method that measured it.
        kind: the matrix, "hessian" or "ggn".
        seed: the seed of the samples.
        why: the reason for this method, and against faster ones.
        converged: False where the errors did not come down to ``rtol``.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        *,
        stderr: dict[str, Tensor],
        per_layer: dict[str, float],
        per_layer_stderr: dict[str, float],
        n_samples: int,
        method: str,
        kind: str,
        seed: int,
        why: str,
        converged: bool,
    ) -> None:
        super().__init__(values)
        self.stderr, self.n_samples = stderr, n_samples
        self.per_layer, self.per_layer_stderr = per_layer, per_layer_stderr
        self.method, self.kind, self.seed = method, kind, seed
        self.why, self.converged = why, converged

    def __repr__(self) -> str:
        size = sum(x.numel() for x in self.values())
        how = ""
        if self.n_samples:
            norm, error = (
                math.sqrt(sum(float(x.double().square().sum()) for x in parts.values()))
                for parts in (self, self.stderr)
            )
            share = error / norm if norm else math.nan
            how = f", {self.n_samples} samples, errors {share:.2g} of its norm"
        return f"Diagonal({len(self)} tensors, {size} entries; {self.kind}, {self.method}{how})"

    def __reduce__(self) -> Any:
        return _diagonal, (dict(self), dict(self.__dict__))


def _diagonal(values: dict[str, Tensor], attributes: dict[str, Any]) -> Diagonal:
    """Makes a diagonal out of what was pickled of it."""
    return Diagonal(values, **attributes)
