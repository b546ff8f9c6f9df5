"""Every op's kernels and launch code, run on the host: against the torch twins, to the same bits under every schedule.

Sums of whole numbers are exact in any order, so they too are compared to the bit. Memory that an op makes begins as NaN,
memory that it is given as 7s.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from metacurv.ops.backend import TWINS as twin
from tests.cuda.emulation.emulated import (
    PROBE,
    SEED,
    EmulatedOps,
    same_under_all_schedules,
    whole_numbers,
)
from tests.helpers import DTYPES, carved, sampled
from tests.problems.layouts import READABLE, WRITABLE

SIZES = [0, 1, 31, 32, 33, 127, 128, 129, 4095, 4097, 16383, 16385, 40001]
OFFSETS = [0, 5, 2**32 - 3, 2**61 + 12345]  # of the first element in its parameter
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_float = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def real_numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def many_tensors(dtype: torch.dtype) -> list[torch.Tensor]:
    """More than one table of tensors, or of dimensions, holds; some empty, some strided."""
    small = [whole_numbers(n % 70, dtype=dtype, seed=n) for n in range(130)]
    strided = [
        whole_numbers(3, 4, 5, 6, dtype=dtype, seed=n).permute(2, 0, 3, 1) for n in range(30)
    ]
    return [*small, *strided, whole_numbers(20_000, dtype=dtype)]


def once(ops: EmulatedOps, run: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
    return run()


def schedules_of(dtype: torch.dtype) -> Callable[..., list[torch.Tensor]]:
    """Runs under all schedules in one dtype: they order threads, and threads do the same in all."""
    return same_under_all_schedules if dtype == torch.float32 else once


def assert_equal(results: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted, rtol=0, atol=0, equal_nan=True)


# rademacher_


@each_dtype
@pytest.mark.parametrize("numel", sampled(SIZES, 3))
def test_rademacher(emulated: EmulatedOps, numel: int, dtype: torch.dtype) -> None:
    for offset, misalign in itertools.product(OFFSETS, (0, 1)):
        x, guards_untouched = carved(numel, dtype, misalign=misalign)

        def fill(x=x, offset=offset):
            x.fill_(7)
            emulated.rademacher_([x], SEED, PROBE, [2**32 - 1], [offset])
            return [x]

        expected = [torch.empty_like(x)]
        twin.rademacher_(expected, SEED, PROBE, [2**32 - 1], [offset])
        run = schedules_of(dtype) if offset == OFFSETS[2] else once
        assert_equal(run(emulated, fill), expected)
        guards_untouched()


@each_dtype
@pytest.mark.parametrize("layout", WRITABLE)
def test_rademacher_layouts(emulated: EmulatedOps, layout: str, dtype: torch.dtype) -> None:
    def fill(ops=emulated):
        x = WRITABLE[layout](dtype, "cpu")
        ops.rademacher_([x], SEED, PROBE, [3], [2**32 - 3])
        return [x]

    assert_equal(schedules_of(dtype)(emulated, fill), fill(twin))


@each_dtype
def test_rademacher_of_many(emulated: EmulatedOps, dtype: torch.dtype) -> None:
    def fill(ops=emulated):
        tensors = many_tensors(dtype)
        n = len(tensors)
        ops.rademacher_(tensors, SEED, PROBE, list(range(n)), [5 * k for k in range(n)])
        return tensors

    assert_equal(schedules_of(dtype)(emulated, fill), fill(twin))


# signed_sum and hutchinson_accumulate_


@each_dtype
@pytest.mark.parametrize("numel", sampled(SIZES, 3))
def test_signed_sum(emulated: EmulatedOps, numel: int, dtype: torch.dtype) -> None:
    for offset, misalign in itertools.product(OFFSETS, (0, 1)):
        x = whole_numbers(numel + misalign, dtype=dtype)[misalign:]
        arguments = [x], SEED, PROBE, [7], [offset]
        run = schedules_of(dtype) if offset == OFFSETS[2] else once
        sums = run(emulated, lambda arguments=arguments: [emulated.signed_sum(*arguments)])
        assert_equal(sums, [twin.signed_sum(*arguments)])


@each_dtype
def test_signed_sum_of_real_numbers(emulated: EmulatedOps, dtype: torch.dtype) -> None:
    x = real_numbers(50_001, dtype=dtype)
    arguments = [x], SEED, PROBE, [7], [11]
    (sums,) = same_under_all_schedules(emulated, lambda: [emulated.signed_sum(*arguments)])
    # Up to 128 elements are added in float32, then float64.
    bound = 1e-12 if dtype == torch.float64 else 127 * 2**-24
    error = (sums - twin.signed_sum(*arguments)).abs()
    assert (error <= bound * x.double().abs().sum()).all()


@each_dtype
@pytest.mark.parametrize("layout", [name for name in READABLE if name != "negative view"])
def test_signed_sum_layouts(emulated: EmulatedOps, layout: str, dtype: torch.dtype) -> None:
    arguments = [READABLE[layout](dtype, "cpu")], SEED, PROBE, [3], [2**32 - 3]
    sums = schedules_of(dtype)(emulated, lambda: [emulated.signed_sum(*arguments)])
    assert_equal(sums, [twin.signed_sum(*arguments)])


@pytest.mark.slow
@each_dtype
def test_statistics(emulated: EmulatedOps, dtype: torch.dtype) -> None:
    """Of many tensors, over some probes; sums by warps, by the whole block, and of nothing."""
    tensors = many_tensors(dtype)
    n = len(tensors)

    def accumulate(op):
        mean, m2 = (torch.zeros(n + 1, dtype=torch.float64) for _ in range(2))
        count = torch.zeros((), dtype=torch.int64)
        for probe in range(3):
            op(mean, m2, count, tensors, SEED, torch.tensor(probe), list(range(n)), [0] * n)
        return [mean, m2, count]

    run = schedules_of(dtype)
    results = run(emulated, lambda: accumulate(emulated.hutchinson_accumulate_))
    assert_equal(results, accumulate(twin.hutchinson_accumulate_))


def test_statistics_of_no_tensors(emulated: EmulatedOps) -> None:
    mean, m2 = (torch.ones(1, dtype=torch.float64) for _ in range(2))
    count = torch.ones((), dtype=torch.int64)
    emulated.hutchinson_accumulate_(mean, m2, count, [], SEED, PROBE, [], [])
    assert (mean.item(), m2.item(), count.item()) == (0.5, 1.5, 2)


def test_a_tensor_of_more_tiles_than_a_warp_sums(emulated: EmulatedOps) -> None:
    """512 partial sums are a warp's, more the whole block's."""
    for tiles in (511, 513):
        x = torch.ones(1).expand(tiles * 16384)
        (total,) = emulated.signed_sum([x], SEED, PROBE, [7], [0])
        assert total == twin.signed_sum([x], SEED, PROBE, [7], [0])[0]


# The reciprocal rule


@each_float
def test_reciprocal_lr(emulated: EmulatedOps, dtype: torch.dtype) -> None:
    inf, nan = float("inf"), float("nan")
    for previous, trace, alpha in itertools.product(
        [1.0, 0.25, 0.0, nan], [0.0, 12.5, -3.0, 1e30, inf, -inf, nan], [0.0, 0.01, 1e300]
    ):
        for reading in (torch.tensor(trace), torch.tensor(trace, dtype=torch.float64)):
            scale, expected = (torch.tensor(previous, dtype=dtype) for _ in range(2))
            emulated.reciprocal_lr_(scale, reading, alpha)
            twin.reciprocal_lr_(expected, reading, alpha)
            assert_equal([scale], [expected])
