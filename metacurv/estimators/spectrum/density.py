"""The spectral density of a curvature matrix, with what else follows from its eigenvalues or quadratures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metacurv import _validate
from metacurv.estimators.spectrum.quadrature import Quadratures
from metacurv.estimators.spectrum.results import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NORMAL = 1.959964  # the 97.5 % quantile of the normal distribution
_POINTS, _MOST_POINTS = 1024, 1 << 16
_MARGIN = 4.0  # widths of the bells beyond the outermost eigenvalues


@dataclass(frozen=True, eq=False)
class SpectralDensity:
    """The density of a matrix's eigenvalues, with a band over probes.

    The density is that of the eigenvalues, each smoothed by a Gaussian bell of standard deviation ``width``; it integrates to
    1.

    Attributes:
        grid: the places at which the density is given, float64 [points], in units of the loss over the parameters' units
            squared.
        density: the density there, float64 [points].
        lower: the lower end of the band, float64 [points]: at each place the density of the matrix lies between ``lower`` and
            ``upper`` with a probability of about 95 % over probes. Where the spectrum is exact the band has no width.
        upper: the upper end of the band.
        eigenvalues: the eigenvalues that are not 0, float64, the largest first, where all of them are known; else None.
        width: the standard deviation of the bells.
        n: the number of all eigenvalues, that of the parameters' elements.
        n_samples: the number of probes, 0 where the spectrum is exact.
        n_products: the number of products with the matrix.
        method: "gram" or "lanczos".
        kind: the matrix, "hessian" or "ggn".
        seed: the seed of the probes.
        why: the reason for this method.
        per_layer: the density of each module's own block, by the module's name, where ``by_layer`` was asked for.
        quadratures: the nodes and weights of each probe, and those of its first three quarters.
        trace_left: the sum of the eigenvalues that are too small to be told from 0, where the spectrum is exact.
        count_left: the largest number of these.
    """

    grid: Tensor = field(repr=False)
    density: Tensor = field(repr=False)
    lower: Tensor = field(repr=False)
    upper: Tensor = field(repr=False)
    eigenvalues: Tensor | None = field(repr=False)
    width: float
    n: int
    n_samples: int
    n_products: int
    method: str
    kind: str
    seed: int
    why: str = field(repr=False)
    per_layer: Mapping[str, SpectralDensity] = field(repr=False)
    quadratures: Sequence[Quadratures] = field(repr=False)
    trace_left: float = field(default=0.0, repr=False)
    count_left: int = field(default=0, repr=False)

    def log_determinant(self, damping: float) -> Measured:
        """Measures log det(A + damping I), with its standard error.

        Args:
            damping: added to all eigenvalues, in their unit; the sum must be positive for all of them.

        Returns:
            The sum of the logarithms of all eigenvalues plus ``damping``.

        Raises:
            TypeError: ``damping`` is no number.
            ValueError: an eigenvalue is at most -damping, so that there is no logarithm.
        """
        shift = _validate.real("damping", damping)
        self._check_above(shift)
        return self._trace_of(lambda x: (x + shift).log())

    def effective_dimension(self, damping: float) -> Measured:
        """Measures tr A (A + damping I)^-1, about the number of directions with more curvature than ``damping``.

        Args:
            damping: a curvature, > 0, above the size of the smallest negative eigenvalue.

        Returns:
            The effective dimension, with its standard error.

        Raises:
            TypeError: ``damping`` is no number.
            ValueError: it is not positive, or an eigenvalue is at most -damping.

        References:
            - MacKay 1992, "Bayesian interpolation", eq. 4.9.
        """
        shift = _validate.real("damping", damping, above=0)
        self._check_above(shift)
        return self._trace_of(lambda x: x / (x + shift))

    @property
    def frobenius_norm(self) -> Measured:
        """The square root of the sum of squared eigenvalues, with its error."""
        squares = self._trace_of(torch.square)
        norm = math.sqrt(max(0.0, squares))
        return Measured(norm, squares.stderr / (2 * norm) if norm else squares.stderr**0.5)

    @property
    def trace(self) -> Measured:
        """The sum of the eigenvalues, with its error."""
        return self._trace_of(lambda x: x)

    def _check_above(self, damping: float) -> None:
        """Raises ValueError unless all eigenvalues are above -damping, as far as probes reach."""
        if self.eigenvalues is None:
            smallest = min(float(probe.whole.nodes.min()) for probe in self.quadratures)
            if (
                self.kind == "hessian" or smallest < 0
            ):  # a Gauss-Newton matrix mostly has no negative ones
                smallest = min(probe.low for probe in self.quadratures)
        else:
            found: list[float] = self.eigenvalues.tolist()
            smallest = min(found) if len(found) == self.n else min([*found, 0.0])
        if smallest + damping <= 0:
            raise ValueError(
                f"damping must be above {-smallest:.6g}, the smallest eigenvalue times -1, got {damping:g}"
            )

    def _trace_of(self, f: Callable[[Tensor], Tensor]) -> Measured:
        """Returns tr f(A) for a function f that rises, and its error.

        The error is that over probes and, added in squares, that of the quadrature. Where the spectrum is exact it is what f
        can make of the eigenvalues that are too small to be told from 0, whose sum is known.
        """
        if self.eigenvalues is not None:
            left = self.n - len(self.eigenvalues)
            known = float(f(self.eigenvalues).sum())
            if not left:
                return Measured(known, 0.0)
            count = max(1, min(left, self.count_left))
            small = torch.tensor([0.0, max(0.0, self.trace_left) / count], dtype=torch.float64)
            at_zero, at_mean = f(small).tolist()
            more = count * (at_mean - at_zero)
            return Measured(known + left * at_zero + more / 2, abs(more) / 2)
        samples = torch.tensor(
            [
                [float(self.n * (q.weights @ f(q.nodes))) for q in (probe.whole, probe.part)]
                for probe in self.quadratures
            ],
            dtype=torch.float64,
        )
        mean, coarse = samples.mean(0).tolist()
        count = len(samples)
        over_probes = float(samples[:, 0].var()) / count if count > 1 else math.nan
        return Measured(mean, math.sqrt(over_probes + (mean - coarse) ** 2))

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest eigenvalue, exact or the outermost of those that the probes saw."""
        if self.eigenvalues is None:
            values = torch.cat([probe.whole.nodes for probe in self.quadratures])
        else:
            values = self.eigenvalues
            if len(values) < self.n:
                values = torch.cat([values, values.new_zeros(1)])
        return float(values.min()), float(values.max())

    def __str__(self) -> str:
        how = "exact" if self.eigenvalues is not None else f"{self.n_samples} probes"
        low, high = self.ends
        return (
            f"spectral density({self.kind}) of {self.n} eigenvalues between {low:.4g} and {high:.4g} "
            f"({self.method}, {how})"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the density over its grid on a logarithmic scale, with its band.

        Args:
            ax: matplotlib axes to draw into; a new figure where none are given.

        Returns:
            The axes, to be changed or saved.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from metacurv.estimators.spectrum.density_display import draw

        return draw(self, ax)


@dataclass(frozen=True)
class Grid:
    """Places between and around ``n`` eigenvalues, float64 [points], and the width of the bells."""

    places: Tensor
    width: float
    n: int


def make_grid(
    n: int, low: float, high: float, points: int | None, width: float | None, resolution: float
) -> Grid:
    """Returns a grid around [low, high] for ``n`` eigenvalues.

    ``points``: the number of places; None for as many as the bells need. ``resolution``: the width of the bells as a share of
    that range, where ``width`` is None.

    Raises:
        ValueError: bells fall between the places, or there would be too many of them.
    """
    span = high - low
    if span == 0:
        span = abs(high) or 1.0
    wide = span * resolution if width is None else width
    needed = math.ceil((span + 2 * _MARGIN * wide) / wide) + 1
    if needed > _MOST_POINTS:
        raise ValueError(
            f"width must be at least {span / _MOST_POINTS:.3g} for eigenvalues over a range of {span:.3g}, got {wide:g}"
        )
    if points is not None and points < needed:
        raise ValueError(
            f"points must be at least {needed} for bells of width {wide:.3g}, got {points}"
        )
    count = max(_POINTS, needed) if points is None else points
    ends = low - _MARGIN * wide, high + _MARGIN * wide
    return Grid(torch.linspace(*ends, count, dtype=torch.float64), wide, n)


def smoothing(nodes: Tensor, grid: Grid) -> Tensor:
    """Returns the height of each node's bell at each place, float64 [points, nodes]."""
    z = (grid.places[:, None] - nodes) / grid.width
    return torch.exp(-0.5 * z.square()) / (grid.width * math.sqrt(2 * math.pi))


def band(quadratures: Sequence[Quadratures], grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the mean density over probes, and the ends of its 95 % band.

    A sample v' f(A) v has the variance 2 tr f^2 (at most, for random signs) and the mean tr f, so that the mean of m samples is
    spread like chi-squared over its degrees of freedom, m (tr f)^2 / tr f^2: one for each probe where an eigenvalue stands
    alone. Both traces come from all probes together, which tells the spread better than a few samples' own variance.

    Source: Avron and Toledo 2011, "Randomized algorithms for estimating the trace of an implicit symmetric positive
    semi-definite matrix", lemma 9 (variance).
    """
    nodes = torch.cat([probe.whole.nodes for probe in quadratures])
    weights = torch.cat([probe.whole.weights for probe in quadratures]) / len(quadratures)
    bells = smoothing(nodes, grid)
    mean, squares = bells @ weights, bells.square() @ weights
    # Of n eigenvalues, (tr f)^2 / tr f^2 = n mean^2 / squares; where there is none nearby both are 0.
    alone = 1.0
    freedom = (grid.n * mean.square() / squares).nan_to_num(alone).clamp(min=alone)
    freedom = freedom * len(quadratures)
    return (
        mean,
        mean * freedom / _chi_squared(freedom, _NORMAL),
        mean * freedom / _chi_squared(freedom, -_NORMAL),
    )


def _chi_squared(freedom: Tensor, normal: float) -> Tensor:
    """Returns the quantile of chi-squared that belongs to one of the normal distribution (Wilson and Hilferty 1931).

    With one degree of freedom the lower one would be too small; no less than a ten-thousandth is returned.
    """
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + normal * spread.sqrt()).clamp(min=0.05).pow(3)
