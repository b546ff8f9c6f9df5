"""The control variate on probes whose laws are known: no bias, errors that hold, and the right choice."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from metacurv.estimators.problem.batches import Summary
from metacurv.estimators.problem.parameters import Layers, NumberedParameter
from metacurv.estimators.split.control_variate import ControlVariate
from metacurv.estimators.statistics.stopping import Budget

PARTS = 2
LAYERS = Layers([NumberedParameter(i, f"{i}.weight", torch.empty(1)) for i in range(PARTS)])
TRACE, OF_G = 3.0, 5.0  # of each example's row, summed over parts


def measured(
    run: int,
    *,
    share: float,
    n: int,
    examples: int = 8,
    rtol: float | None = None,
    columns: int = 1_000_000,
) -> Summary:
    """Probes whose v' G v has deviation 2 and whose remainder has 2 sqrt(1 - share); a sample of tr G has deviation 0.5."""

    def probe(k: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1_000_003 * run + k)
        noise = torch.randn(2, 1 + examples, dtype=torch.float64, generator=generator)
        noise[:, 0] = 0
        g = torch.zeros(1 + examples, dtype=torch.float64)
        g[1:] = OF_G
        g += 2 * noise[0]
        h = torch.zeros_like(g)
        h[1:] = TRACE
        h += 2 * (math.sqrt(share) * noise[0] + math.sqrt(1 - share) * noise[1])
        return torch.stack([0.25 * h, 0.75 * h], dim=1), g

    def traces(first: int, m: int) -> Tensor:
        generator = torch.Generator().manual_seed(7_000_003 * run + first)
        noise = torch.randn(m, 1 + examples, PARTS, dtype=torch.float64, generator=generator)
        rows = OF_G / PARTS + 0.5 / math.sqrt(PARTS) * noise
        rows[:, 0] = 0
        return rows

    budget = Budget(n, rtol, 10_000)
    return ControlVariate(
        probe, traces, lambda: OF_G * examples, columns, LAYERS, budget, examples
    ).measure()


@pytest.mark.parametrize("columns", [1, 1_000_000])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("n", [2, 6, 9])
def test_no_bias_and_errors_that_hold(share: float, n: int, columns: int) -> None:
    runs, examples = 600, 8
    found = [measured(run, share=share, n=n, columns=columns) for run in range(runs)]
    values = torch.tensor([s.mean for s in found], dtype=torch.float64)
    errors = torch.tensor([s.stderr for s in found], dtype=torch.float64)
    expected = examples * TRACE * torch.tensor([0.25, 0.75, 0.25, 0.75, 1.0], dtype=torch.float64)
    spread = values.std(0)
    assert ((values.mean(0) - expected).abs() <= 4 * spread / math.sqrt(runs)).all()
    assert values[:, :PARTS].sum(1).allclose(values[:, -1])
    quantile = stats.t.ppf(0.975, examples * (n - 1))
    covered = ((values - expected).abs() <= quantile * errors).double().mean(0)
    assert ((covered - 0.95).abs() <= 4 * math.sqrt(0.95 * 0.05 / runs)).all(), covered


def test_a_coefficient_of_its_own_probe_would_bias() -> None:
    """Skewed probes, whose regression on themselves goes with their mean: c must come from the others."""
    examples, n, runs = 4, 12, 1500

    def one(run: int) -> float:
        generator = torch.Generator().manual_seed(run)
        noise = torch.empty(n, 1 + examples, dtype=torch.float64).exponential_(generator=generator)
        g = OF_G + noise - 1
        h = TRACE + (noise - 1) ** 2 - 1
        g[:, 0] = h[:, 0] = 0
        probe = lambda k: (torch.stack([h[k], 0 * h[k]], dim=1), g[k])  # noqa: E731
        rows = torch.full((1 + examples, PARTS), OF_G / PARTS, dtype=torch.float64)
        rows[0] = 0
        draw = lambda first, m: rows.expand(m, -1, -1)  # noqa: E731
        budget = Budget(n, None, n)
        exact = OF_G * examples
        variate = ControlVariate(probe, draw, lambda: exact, 10**6, LAYERS, budget, examples)
        return variate.measure().mean[-1]

    values = torch.tensor([one(run) for run in range(runs)], dtype=torch.float64)
    assert abs(values.mean() - TRACE * examples) <= 4 * values.std() / math.sqrt(runs)


def test_it_pays_where_the_noise_is_that_of_g() -> None:
    with_it, without = measured(1, share=0.95, n=20), measured(1, share=0.0, n=20)
    assert "as a control variate takes" in with_it.note
    assert "tr G by samples" in with_it.note
    assert "would take" in without.note
    assert with_it.stderr[-1] < 0.5 * without.stderr[-1]
    assert without.stderr[-1] == pytest.approx(2 * math.sqrt(8 / 20), rel=0.2)


def test_few_columns_are_taken_whole() -> None:
    sampled, whole = (measured(1, share=0.95, n=20, columns=k) for k in (1_000_000, 2))
    assert "tr G by samples" in sampled.note
    assert "tr G exact" in whole.note
    assert whole.stderr[-1] < sampled.stderr[-1]


def test_fewer_probes_are_plain() -> None:
    summary = measured(1, share=0.95, n=5)
    assert summary.n_samples == 5
    assert "fewer than 6 probes" in summary.note


def test_nobody_asks_for_the_other_trace_where_few_probes_do() -> None:
    """One probe has the deviation 0.1 sqrt(8) on 24: nine of them give 0.4 %."""

    def probe(k: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        noise[0] = 0
        base = torch.ones_like(noise)
        base[0] = 0
        return torch.stack([TRACE * base + 0.1 * noise, 0 * noise], dim=1), OF_G * base + noise

    def traces(first: int, m: int) -> Tensor:
        raise AssertionError("tr G was asked for")

    summary = ControlVariate(
        probe, traces, lambda: 0.0, 10**6, LAYERS, Budget(1, 0.004, 100), 8
    ).measure()
    assert summary.converged
    assert 3 <= summary.n_samples < 16
    assert summary.note.startswith("no control variate: about ")


@pytest.mark.parametrize("share", [0.0, 0.95])
def test_it_draws_until_the_error_is_met(share: float) -> None:
    summary = measured(3, share=share, n=1, rtol=0.02)
    assert summary.converged
    assert summary.stderr[-1] <= 0.02 * summary.mean[-1]
    needed = 4 * 8 / (0.02 * 8 * TRACE) ** 2  # without a control variate
    assert summary.n_samples < (0.5 if share else 2.0) * needed


def test_a_trace_that_is_not_finite_is_no_crash() -> None:
    summary = ControlVariate(
        lambda k: (torch.full((9, PARTS), math.nan, dtype=torch.float64), torch.ones(9).double()),
        lambda first, m: torch.ones(m, 9, PARTS, dtype=torch.float64),
        lambda: 8.0,
        1,
        LAYERS,
        Budget(10, 0.1, 100),
        8,
    ).measure()
    assert (summary.n_samples, summary.converged) == (10, False)


def test_it_gives_up_at_the_most() -> None:
    summary = ControlVariate(
        lambda k: (torch.randn(9, PARTS, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)),
        lambda first, m: torch.ones(m, 9, PARTS, dtype=torch.float64),
        lambda: 8.0,
        1,
        LAYERS,
        Budget(1, 0.001, 10),
        8,
    ).measure()
    assert (summary.n_samples, summary.converged) == (10, False)


def skewed(run: int, n: int, rtol: float | None, outlier: float) -> Summary:
    """Exponential noise in all that is drawn; the first of eight examples has ``outlier`` times the noise of the others."""
    examples = 8
    scale = torch.ones(1 + examples, dtype=torch.float64)
    scale[0], scale[1] = 0, outlier

    def noise(seed: int, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.empty(shape, dtype=torch.float64).exponential_(generator=generator) - 1

    base = torch.ones(1 + examples, dtype=torch.float64)
    base[0] = 0

    def probe(k: int) -> tuple[Tensor, Tensor]:
        of_g, rest = noise(1_000_003 * run + k, 2, 1 + examples)
        h = TRACE * base + scale * (of_g + 0.3 * rest)
        return torch.stack([h, 0 * h], dim=1), OF_G * base + scale * of_g

    def traces(first: int, m: int) -> Tensor:
        rows = [
            OF_G * base + scale * noise(7_000_003 * run + k, 1 + examples)
            for k in range(first, first + m)
        ]
        return torch.stack(
            [torch.stack(rows), torch.zeros(m, 1 + examples, dtype=torch.float64)], dim=2
        )

    budget = Budget(n, rtol, 10_000)
    return ControlVariate(probe, traces, lambda: 0.0, 10**6, LAYERS, budget, examples).measure()


@pytest.mark.parametrize("outlier", [1.0, 10.0])
def test_no_bias_where_samples_are_skewed(outlier: float) -> None:
    """How many samples of tr G are drawn goes by their scatter, which goes with their mean."""
    runs = 800
    values = torch.tensor([skewed(run, 9, None, outlier).mean[-1] for run in range(runs)])
    assert abs(values.mean() - 8 * TRACE) <= 4 * values.std() / math.sqrt(runs)


def test_samples_that_decide_are_not_used_again() -> None:
    """How many follow goes by their scatter: those that came first must leave no trace in the mean."""

    def measure(shift: float) -> Summary:
        def probe(k: int) -> tuple[Tensor, Tensor]:
            generator = torch.Generator().manual_seed(k)
            g = torch.randn(9, dtype=torch.float64, generator=generator)
            g[0] = 0
            return torch.stack([g, 0 * g], dim=1), g

        def traces(first: int, m: int) -> Tensor:
            generator = torch.Generator().manual_seed(first)
            rows = torch.randn(m, 9, PARTS, dtype=torch.float64, generator=generator)
            rows[:, 0] = 0
            return rows + (shift if first == 0 else 0.0)

        budget = Budget(12, None, 12)
        return ControlVariate(probe, traces, lambda: 0.0, 10**6, LAYERS, budget, 8).measure()

    assert "tr G by samples" in measure(0.0).note
    assert measure(0.0).mean == measure(1000.0).mean


def test_one_example_with_all_the_noise_does_not_end_it_early() -> None:
    for run in range(20):
        summary = skewed(run, 1, 0.1, 30.0)
        assert summary.converged
        assert summary.stderr[-1] <= 0.1 * abs(summary.mean[-1])


def test_rows_that_depend_on_each_other_have_no_control_variate() -> None:
    h = torch.zeros(9, PARTS, dtype=torch.float64)
    variate = ControlVariate(
        lambda k: (h + k, h[:, 0] + k), lambda first, m: h.expand(m, -1, -1), lambda: 0.0, 1, LAYERS,
        Budget(20, None, 20), 8, may_vary=False,
    )  # fmt: skip
    assert "one direction for all examples" in variate.measure().note
