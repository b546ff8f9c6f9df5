"""The measurements of a report, one after the other; one that fails does not stop the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from metacurv.estimators.estimate_trace import estimate_trace
from metacurv.estimators.problem.data import Kind
from metacurv.estimators.problem.results import TraceEstimate
from metacurv.estimators.spectral_density import spectral_density
from metacurv.estimators.spectrum.density import SpectralDensity
from metacurv.estimators.spectrum.results import TopEigenvalues
from metacurv.estimators.top_eigenvalues import top_eigenvalues
from metacurv.measure.subject import Subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MATRIX = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}


@dataclass(frozen=True)
class Settings:
    """Holds the command's options."""

    kinds: tuple[Kind, ...]
    rtol: float
    top: int
    probes: int
    steps: int
    seed: int


@dataclass(frozen=True)
class Finding:
    """One measurement: its title, a line about it, numbers for the JSON file, and a picture where there is one."""

    title: str
    text: str
    seconds: float
    numbers: dict[str, Any]
    why: str = ""
    picture: Callable[[], Axes] | None = field(default=None, repr=False)
    failed: bool = False

    @property
    def line(self) -> str:
        """A line for the terminal."""
        return f"{self.title}: {self.text} ({self.seconds:.1f} s)"


def measure(subject: Subject, settings: Settings) -> Iterator[Finding]:
    """Yields the findings as they come."""
    for kind in settings.kinds:
        for name, take in (("trace", _trace), ("eigenvalues", _top), ("density", _density)):
            title = f"{name} of the {_MATRIX[kind]}"
            started = time.perf_counter()
            try:
                text, numbers, why, picture = take(subject, settings, kind)
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                seconds = time.perf_counter() - started
                yield Finding(title, message, seconds, {"error": message}, failed=True)
                continue
            seconds = time.perf_counter() - started
            yield Finding(title, text, seconds, numbers, why, picture)


Taken = tuple[str, dict[str, Any], str, "Callable[[], Axes] | None"]


def _trace(subject: Subject, settings: Settings, kind: Kind) -> Taken:
    found: TraceEstimate = estimate_trace(
        subject.model,
        subject.loss_fn,
        subject.loader,
        kind=kind,
        rtol=settings.rtol,
        seed=settings.seed,
    )
    numbers = {
        "value": found.value,
        "stderr": found.stderr,
        "n_samples": found.n_samples,
        "method": found.method,
        "converged": found.converged,
        "per_layer": found.per_layer,
        "per_layer_stderr": found.per_layer_stderr,
    }
    return str(found), numbers, found.why, found.plot


def _top(subject: Subject, settings: Settings, kind: Kind) -> Taken:
    size = sum(p.numel() for p in subject.model.parameters() if p.requires_grad)
    found: TopEigenvalues = top_eigenvalues(
        subject.model,
        subject.loss_fn,
        subject.loader,
        kind=kind,
        k=min(settings.top, size),
        seed=settings.seed,
    )
    numbers = {
        "values": found.values.tolist(),
        "errors": found.errors.tolist(),
        "residuals": found.residuals.tolist(),
        "n_products": found.n_products,
        "method": found.method,
        "converged": found.converged,
    }
    return str(found), numbers, found.why, None


def _density(subject: Subject, settings: Settings, kind: Kind) -> Taken:
    found: SpectralDensity = spectral_density(
        subject.model,
        subject.loss_fn,
        subject.loader,
        kind=kind,
        n_samples=settings.probes,
        steps=settings.steps,
        seed=settings.seed,
    )
    norm = found.frobenius_norm
    numbers: dict[str, Any] = {
        "grid": found.grid.tolist(),
        "density": found.density.tolist(),
        "lower": found.lower.tolist(),
        "upper": found.upper.tolist(),
        "width": found.width,
        "eigenvalues": None if found.eigenvalues is None else found.eigenvalues.tolist(),
        "frobenius_norm": [norm.value, norm.stderr],
        "n_samples": found.n_samples,
        "method": found.method,
    }
    text = f"{found}; Frobenius norm {norm}"
    if kind == "ggn" and found.ends[1] > 0:
        # A hundredth of the largest eigenvalue: directions with less count little.
        damping = 0.01 * found.ends[1]
        dimension = found.effective_dimension(damping)
        numbers["effective_dimension"] = [damping, dimension.value, dimension.stderr]
        text += f"; effective dimension at a damping of {damping:.3g}, a hundredth of the largest: {dimension}"
    return text, numbers, found.why, found.plot
