"""The Hessian's trace from probes of the Hessian with those of the Gauss-Newton matrix as a control variate.

    tr H = E[ v' H v - c v' G v ] + c tr G

for every c. One double backward gives v' H v and v' G v of the same v, and activation space gives tr G with less noise than
v' G v has. For probe k, c comes from the other probes (the regression of one on the other, within each row), so that the mean
over probes has no bias. Where the remainder and tr G together would take more work than v' H v alone, c is 0, and the estimator
is Hutchinson's; the first probes decide, each half for the other one.

Source: docs/concepts/estimators.md; Owen 2013, "Monte Carlo theory, methods and examples", section 8.9 (control variates).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metacurv.estimators.problem.batches import Summary
from metacurv.estimators.problem.parameters import Layers
from metacurv.estimators.problem.progress import bar
from metacurv.estimators.statistics.moments import RowMoments, samples_to_trust
from metacurv.estimators.statistics.stopping import Budget, Draw

# A sample of tr G in activation space takes this share of a probe's time (benchmarks/real_networks.py).
_COST = 0.4
_FEWEST = 4  # probes to choose by: two in each half
_DEGREES = 6  # of freedom, that half the probes must have to choose by
_MOST_EACH = 8  # samples of tr G for each probe, at most
_WORTH = 16  # probes without tr G, below which finding out whether it pays costs what it may save

# Maps a probe to v_n' (H_n v), float64 [rows, parts], and v_n' G_n v_n, float64 [rows].
Probe = Callable[[int], tuple[Tensor, Tensor]]


class ControlVariate:
    """Draws probes, and samples of tr G where they pay, until the budget is met.

    Args:
        probe: one probe's samples.
        gauss_newton: draws samples of tr G by row.
        exact: computes tr G without error.
        columns: the number of backward passes to the layers that this takes.
        layers: extends parts by layers and the total.
        budget: says when to stop, by the number of probes.
        examples: the number of examples that rows tell apart, 1 where they do not.
        may_vary: False where rows of v' G v are not independent of each other, so that errors with them would be too small.
    """

    def __init__(
        self,
        probe: Probe,
        gauss_newton: Draw,
        exact: Callable[[], float],
        columns: int,
        layers: Layers,
        budget: Budget,
        examples: int,
        *,
        may_vary: bool = True,
    ) -> None:
        self._probe, self._draw_gauss_newton = probe, gauss_newton
        self._exact, self._columns = exact, columns
        self._layers, self._budget, self._examples = layers, budget, examples
        self._may_vary = may_vary
        self._h: list[Tensor] = []  # [rows, D]
        self._g: list[Tensor] = []  # [rows]
        # With one probe left out, a coefficient still has as many degrees of freedom as an error that is trusted.
        self._least = max(_FEWEST, 1 + samples_to_trust(examples))

    def measure(self) -> Summary:
        """Returns the trace with its parts; ``note`` says what was decided."""
        with bar(self._budget.progress, "trace", "probe") as self._bar:
            return self._measure()

    def _measure(self) -> Summary:
        budget = self._budget
        wanted = budget.begin(self._examples)
        note = f"no control variate: fewer than {self._least} probes, or a loss that is linear in the output"
        if not self._may_vary:
            note = "no control variate: some parameters have one direction for all examples"
        choice: _Choice | None = None
        while True:
            self._draw_probes(wanted)
            if choice is None and self._can_choose():
                choice = self._choose()
                note = choice.note
            mean, variance, of_trace, is_trusted = self._fit(choice)
            errors, count = (variance + of_trace).sqrt(), len(self._h)
            value, error = float(mean[-1]), float(errors[-1])
            wanted = budget.more(count, value, error, is_trusted=is_trusted)
            if wanted <= count:
                break
            if choice is None and self._may_vary and count < self._least:
                wanted = min(wanted, self._least)
        is_met = budget.is_met(value, error, is_trusted=is_trusted)
        return Summary(mean.tolist(), errors.tolist(), count, is_met, note)

    def _draw_probes(self, wanted: int) -> None:
        for k in range(len(self._h), wanted):
            parts, g = self._probe(k)
            self._h.append(self._layers.with_sums(parts))
            self._g.append(g.cpu())
            self._bar.update()

    def _can_choose(self) -> bool:
        return self._may_vary and len(self._h) >= self._least and any(map(torch.any, self._g))

    def _fit(self, choice: _Choice | None) -> tuple[Tensor, Tensor, Tensor, bool]:
        """Returns the means, their variances by probes and by what is known of tr G, and whether these are trusted."""
        h, g = torch.stack(self._h), torch.stack(self._g)
        n = len(h)
        c, off, beyond = torch.zeros(n, h.shape[-1], dtype=h.dtype), g - g.mean(0), g.sum(1)
        trace = None if choice is None else choice.trace
        if choice is not None and trace is not None:
            products, squares = _regression(h, g)
            # Without probe k, deviations are those from the others' mean: a sum of squares loses n / (n - 1) of k's.
            by = n / (n - 1)
            others = squares.sum() - by * squares
            c = (products.sum(0) - by * products) / others.unsqueeze(1) * choice.mask(n)
            trace.go_on(choice.each * n)
            beyond = beyond - trace.value
        moments = RowMoments()
        moments.add(h - c.unsqueeze(1) * off.unsqueeze(2))
        mean = (h.sum(1) - c * beyond.unsqueeze(1)).mean(0)
        variance = moments.deviation.square() / n
        if trace is None:
            return mean, variance, torch.zeros_like(variance), moments.is_trusted
        of_trace = (c.mean(0) * trace.error).square()
        is_small = bool(16 * of_trace[-1] <= variance[-1])
        return mean, variance, of_trace, moments.is_trusted and (trace.is_trusted or is_small)

    def _choose(self) -> _Choice:
        """Chooses for each half of the probes by the other half, so that no probe has a say in its own estimate.

        The samples of tr G that it looks at are not used again: how many follow hangs on their scatter, which goes with their
        mean where they are skewed.
        """
        n = len(self._h)
        parts = [range(1, n, 2), range(0, n, 2), range(n)]
        needed = [n if self._budget.rtol is None else self._needed(probes) for probes in parts]
        if self._budget.rtol is not None and max(needed) < _WORTH:
            note = f"no control variate: about {needed[-1]} probes do without"
            return _Choice([], False, None, 0.0, note)
        pilot = _Sampled(self._draw_gauss_newton, 0, samples_to_trust(self._examples))
        pairs = zip(parts, needed, strict=True)
        *halves, whole = (self._decide(probes, count, pilot, n) for probes, count in pairs)
        uses = [halves[k % 2].pays for k in range(n)]
        does = "takes" if whole.pays else "would take"
        note = (
            f"by the first {n} probes, the Gauss-Newton matrix as a control variate {does} {whole.share:.0%} of the work "
            "without it"
        )
        if not (whole.pays or any(uses)):
            return _Choice([], False, None, 0.0, note)
        if whole.by_columns:
            return _Choice(uses, whole.pays, _Exact(self._exact()), 0.0, f"{note} (tr G exact)")
        # Few samples of which one example has most of the scatter know little about their own error.
        least = samples_to_trust(self._examples if pilot.is_trusted else 1)
        trace = _Sampled(self._draw_gauss_newton, pilot.count, least)
        return _Choice(uses, whole.pays, trace, whole.each, f"{note} (tr G by samples)")

    def _needed(self, probes: range) -> int:
        """Estimates by some probes how many would meet ``rtol`` without tr G."""
        h, moments = torch.stack([self._h[k] for k in probes]), RowMoments()
        moments.add(h)
        target = (self._budget.rtol or 0.0) * abs(float(moments.mean[-1]))
        # Of a trace that is not finite no number is known.
        ratio = float(moments.deviation[-1]) / target if target > 0 else math.inf
        return math.ceil(min(ratio * ratio, self._budget.most))

    def _decide(self, probes: range, needed: int, pilot: _Sampled, n: int) -> _Decision:
        """Compares the work to an equal error: without tr G, with samples of it, and with its exact value.

        ``needed``: the number of probes that would do without; ``n``: that of those there are.
        """
        h, g = (torch.stack([kept[k] for k in probes]) for kept in (self._h, self._g))
        products, squares = _regression(h, g)
        plain, varied = RowMoments(), RowMoments()
        plain.add(h)
        c = products.sum(0) / squares.sum()
        varied.add(h - c * (g - g.mean(0)).unsqueeze(2))
        before, after = float(plain.deviation[-1]), float(varied.deviation[-1])
        if not before > 0 or plain.degrees < min(_DEGREES, self._examples):
            return _Decision(False, math.inf, False, 0.0)
        if self._budget.rtol is not None and needed < _WORTH:
            return _Decision(False, math.inf, False, 0.0)
        n = max(n, needed)
        of_trace = abs(float(c[-1])) * pilot.deviation
        by_samples = (after + math.sqrt(_COST) * of_trace) ** 2 / before**2
        by_columns = (after / before) ** 2 + _COST * self._columns / n
        share = min(by_samples, by_columns)
        each = min(of_trace / after / math.sqrt(_COST), _MOST_EACH) if after else float(_MOST_EACH)
        return _Decision(share < 1, share, by_columns < by_samples, each)


def _regression(h: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each probe's share of the products of h and g, [K, D], and of the squares of g, [K], within rows."""
    off = g - g.mean(0)
    return torch.einsum("kr,krd->kd", off, h - h.mean(0)), off.square().sum(1)


@dataclass(frozen=True)
class _Decision:
    """Says whether tr G pays, the work with it beside that without, whether exact, and how many samples go with a probe."""

    pays: bool
    share: float
    by_columns: bool
    each: float


@dataclass(frozen=True)
class _Choice:
    """Says which of the first probes take tr G, whether all later ones do, and how it is measured."""

    uses: list[bool]
    later: bool
    trace: _Exact | _Sampled | None
    each: float
    note: str

    def mask(self, n: int) -> Tensor:
        """Returns 1 for each of ``n`` probes that takes tr G, else 0: float64 [n, 1]."""
        chosen = [*self.uses, *[self.later] * (n - len(self.uses))]
        return torch.tensor(chosen, dtype=torch.float64).unsqueeze(1)


class _Exact:
    """Holds tr G without error."""

    error, is_trusted = 0.0, True

    def __init__(self, value: float) -> None:
        self.value = value

    def go_on(self, samples: float) -> None:
        """Has nothing to draw."""


class _Sampled:
    """Holds what samples say of tr G, from a probe on and ``least`` of them at least."""

    def __init__(self, draw: Draw, start: int, least: int) -> None:
        self._draw, self._start, self._moments = draw, start, RowMoments()
        self.go_on(least)

    def go_on(self, samples: float) -> None:
        """Draws until there are as many."""
        count = self._moments.count
        if math.ceil(samples) > count:
            rows = self._draw(self._start + count, math.ceil(samples) - count)
            self._moments.add(rows.sum(-1, keepdim=True).cpu())

    @property
    def count(self) -> int:
        """The number of samples."""
        return self._moments.count

    @property
    def value(self) -> float:
        """Their mean."""
        return float(self._moments.mean[-1])

    @property
    def deviation(self) -> float:
        """That of one sample."""
        return float(self._moments.deviation[-1])

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return self.deviation / math.sqrt(self.count)

    @property
    def is_trusted(self) -> bool:
        """See ``RowMoments``."""
        return self._moments.is_trusted
