"""The spectral density of a whole model's Hessian or Gauss-Newton matrix, with a band, and what follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metacurv import _validate
from metacurv._warnings import warn_user
from metacurv.estimators.problem.data import Kind
from metacurv.estimators.problem.model_loss import LossFunction
from metacurv.estimators.problem.parameters import layers_of
from metacurv.estimators.problem.progress import Bar, bar, check_progress
from metacurv.estimators.spectrum.block import Block
from metacurv.estimators.spectrum.columns import choose_gram
from metacurv.estimators.spectrum.density import Grid, SpectralDensity, band, make_grid, smoothing
from metacurv.estimators.spectrum.gram import GramMatrix
from metacurv.estimators.spectrum.matrix import Matrix, make_matrix
from metacurv.estimators.spectrum.quadrature import Quadratures, quadratures

_DEFAULT_SAMPLES = 10
_RESOLUTION = 1.2  # widths of bells for which a quadrature is right to five digits, times its steps, of the spectrum's range


def spectral_density(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any = None,
    *,
    kind: Kind = "hessian",
    method: Literal["auto", "gram", "lanczos"] = "auto",
    n_samples: int | None = None,
    rtol: float | None = None,
    max_samples: int = 100,
    steps: int = 80,
    width: float | None = None,
    points: int | None = None,
    by_layer: bool = False,
    seed: int = 0,
    max_memory: int = 1 << 30,
    backend: str = "auto",
    process_group: Any = None,
    output: Callable[[Any], Any] | None = None,
    batch_size: int | Callable[[Any], int] | None = None,
    progress: bool | None = None,
) -> SpectralDensity:
    """Measures the density of all eigenvalues of the Hessian or the Gauss-Newton matrix (GGN).

    The matrix is that of ``loss_fn(model(inputs), targets)``, in all parameters that require a gradient.

    - "gram": all eigenvalues, exact up to rounding, by the Gram matrix of the loss's factor's columns. It serves the GGN of
      losses with a symmetric factor (cross-entropy, squared error), in one process, and up to 5000 columns (examples times
      classes less one).
    - "lanczos": stochastic Lanczos quadrature, ``steps`` products for each of a few random probes. It serves every loss that
      can be differentiated twice.
    - "auto": "gram" where it serves, else "lanczos"; ``why`` of the result gives the reason.

    The model's state stays as it was, as for ``estimate_trace``.

    Args:
        model: the model; its parameters that require a gradient are measured.
        loss_fn: called with the model's output and the targets; returns a scalar, a mean or a sum over the examples.
        inputs: a batch or an iterable of batches, as for ``top_eigenvalues``.
        targets: the second argument of ``loss_fn``; None where ``inputs`` gives it.
        kind: "hessian" or "ggn".
        method: one of the methods above. "gram" where it does not serve raises ValueError.
        n_samples: the number of probes, >= 1; with ``rtol`` the least number. The default is 10.
        rtol: in (0, 1): probes are drawn until the band's half width, integrated over the grid, is at most this share of the
            density's integral, which is 1.
        max_samples: the number of probes, >= 1, at which ``rtol`` is given up, with a warning.
        steps: the number of products for each probe, >= 2. More of them tell finer features apart.
        width: the standard deviation of the bells that smooth the eigenvalues, > 0, in their unit. The default is 1.2 /
            ``steps`` of the spectrum's range, which that many products resolve.
        points: the number of places in the grid, >= 2; by default 1024, or as many as the bells need.
        by_layer: True for the density of each module's own block too, by probes of its own.
        seed: int in [0, 2^64). The same seed gives the same probes.
        max_memory: bytes for the Krylov space, which bound ``steps`` too, and for the columns' cotangents.
        backend: "auto", "native" or "reference" (see ``metacurv.ops``).
        process_group: the ranks whose batches make up one matrix, as for ``estimate_trace``.
        output: a function that picks from the model's output what ``loss_fn`` gets, as for ``estimate_trace``.
        batch_size: the number of examples in a batch, as for ``estimate_trace``.
        progress: True for a progress bar, False for none; None for one on work of more than three seconds in a terminal.

    Returns:
        The density on a grid with its band, and functions for the log determinant, the effective dimension and more.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range; the loss cannot be measured; "gram" does not serve; ``max_memory`` holds less
            than two vectors.
        NotTwiceDifferentiableError: an operation in the graph of the loss has no second derivative.
        ImportError: ``progress`` is True, and tqdm is not installed.

    References:
        - Ubaru, Chen, Saad 2017, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature".
        - Ghorbani, Krishnan, Xiao 2019, "An investigation into neural net optimization via Hessian eigenvalue density".

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
        >>> found = spectral_density(model, torch.nn.MSELoss(), x, y, kind="ggn")
        >>> [round(value, 4) for value in found.eigenvalues.tolist()], round(found.frobenius_norm, 4)
        ([4.0, 1.0], 4.1231)
    """
    matrix = make_matrix(
        model,
        loss_fn,
        inputs,
        targets,
        kind=kind,
        max_memory=max_memory,
        backend=backend,
        process_group=process_group,
        output=output,
        batch_size=batch_size,
    )
    most = _validate.integer("max_samples", max_samples, low=1)
    least = _DEFAULT_SAMPLES if rtol is None else min(_DEFAULT_SAMPLES, most)
    if n_samples is not None:
        least = _validate.integer("n_samples", n_samples, low=1)
    measuring = _Measuring(
        matrix=matrix,
        least=least,
        most=most,
        rtol=None if rtol is None else _validate.real("rtol", rtol, above=0, below=1),
        steps=_validate.integer("steps", steps, low=2),
        width=None if width is None else _validate.real("width", width, above=0),
        points=None if points is None else _validate.integer("points", points, low=2),
        seed=_validate.seed(seed),
    )
    _validate.one_of("method", method, ("auto", "gram", "lanczos"))
    _validate.boolean("by_layer", by_layer)
    check_progress(progress)
    with matrix.gathered(), matrix.kept():
        gram, why = choose_gram(matrix, method)
        with bar(progress, "density", "product") as shown:
            found = measuring.of(gram, None, why, shown)
            if by_layer:
                per_layer = {
                    layer: measuring.of(gram, names, why, shown)
                    for layer, names in layers_of(matrix.names).items()
                }
                found = dataclasses.replace(found, per_layer=per_layer)
    return found


@dataclasses.dataclass(frozen=True)
class _Measuring:
    """Measures the whole matrix, or a block of it."""

    matrix: Matrix
    least: int
    most: int
    rtol: float | None
    steps: int
    width: float | None
    points: int | None
    seed: int

    def of(
        self, gram: GramMatrix | None, names: Sequence[str] | None, why: str, shown: Bar
    ) -> SpectralDensity:
        """Measures the block of the parameters of these names."""
        if gram is not None:
            return self._of_gram(gram, names, why)
        return self._lanczos(Block(self.matrix, None if names is None else list(names)), why, shown)

    def _of_gram(self, gram: GramMatrix, names: Sequence[str] | None, why: str) -> SpectralDensity:
        places = None if names is None else [self.matrix.names.index(name) for name in names]
        size = Block(self.matrix, None if names is None else list(names)).size
        of_block = gram if places is None else gram.of(places)
        values = of_block.eigenvalues(size).cpu()
        every = torch.cat([values, values.new_zeros(1)]) if len(values) < size else values
        low, high = every.min().item(), every.max().item()
        grid = make_grid(size, low, high, self.points, self.width, _RESOLUTION / self.steps)
        weights = torch.full_like(values, 1 / size)
        if len(values) < size:
            weights = torch.cat([weights, weights.new_full((1,), 1 - len(values) / size)])
        density = smoothing(every, grid) @ weights
        found = self._result(grid, (density, density, density), size, why, values=values)
        return dataclasses.replace(
            found,
            trace_left=max(0.0, of_block.trace - float(values.sum())),
            count_left=min(size, of_block.rank) - len(values),
        )

    def _lanczos(self, block: Block, why: str, shown: Bar) -> SpectralDensity:
        steps = min(self.steps, block.size, block.held - 1)
        if steps < min(2, block.size):
            raise ValueError(
                f"max_memory must hold three vectors of the matrix, {3 * block.size * block.dtype.itemsize} bytes, got "
                f"{self.matrix.max_memory}"
            )
        before, fresh = self.matrix.n_products, block.signs(self.seed, self.matrix.backend)
        found: list[Quadratures] = []
        wanted = self.least
        while True:
            while len(found) < wanted:
                found.append(
                    quadratures(block.times, fresh(), steps, self.matrix.eps, shown.update)
                )
            low, high = min(probe.low for probe in found), max(probe.high for probe in found)
            grid = make_grid(block.size, low, high, self.points, self.width, _RESOLUTION / steps)
            density, lower, upper = band(found, grid)
            half = float(torch.trapezoid((upper - lower) / 2, grid.places))
            if self.rtol is None or half <= self.rtol:
                break
            if wanted >= self.most:
                warn_user(
                    f"spectral_density stopped at max_samples={self.most} with a band of {half:.2g} for rtol={self.rtol:g}; "
                    "the band is honest but wider",
                    UserWarning,
                )
                break
            growth = min(2.0, half / self.rtol) ** 2
            wanted = min(self.most, max(wanted + 1, round(wanted * growth)))
        bands = (density, lower, upper)
        products = self.matrix.n_products - before
        return self._result(grid, bands, block.size, why, found=found, n_products=products)

    def _result(
        self,
        grid: Grid,
        bands: tuple[Tensor, Tensor, Tensor],
        size: int,
        why: str,
        *,
        values: Tensor | None = None,
        found: Sequence[Quadratures] = (),
        n_products: int = 0,
    ) -> SpectralDensity:
        density, lower, upper = bands
        return SpectralDensity(
            grid=grid.places,
            density=density,
            lower=lower,
            upper=upper,
            eigenvalues=values,
            width=grid.width,
            n=size,
            n_samples=len(found),
            n_products=n_products,
            method="lanczos" if values is None else "gram",
            kind=self.matrix.kind,
            seed=self.seed,
            why=why,
            per_layer={},
            quadratures=found,
        )
