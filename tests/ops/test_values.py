"""The ops against arithmetic written here: exact sums, numpy's mean and variance, the binomial law of fair signs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metacurv import ops
from tests.helpers import BACKENDS, DEVICES, DTYPES, contract_signs, property_test

# float64 sums of n <= 2^17 terms in 32 lanes, a tree and chunks err by less than 2000 roundings of sum |x|.
SUM_ERROR = 2000 * 2.0**-53


def exact_sum(x: torch.Tensor, signs: np.ndarray) -> float:
    """sum v_i x_i, rounded once."""
    return math.fsum((x.detach().cpu().double().flatten().numpy() * signs).tolist())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1,), (31,), (129, 3), (32767,), (100, 401), (100003,)], ids=str)
def test_signed_sum(device, dtype, backend, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    for offset in (0, 77):
        result = ops.signed_sum(
            [x], seed=6, probe=9, numbers=[4], offsets=[offset], backend=backend
        )
        assert result.dtype == torch.float64
        assert result.device == x.device
        signs = contract_signs(x.numel(), seed=6, probe=9, number=4, offset=offset)
        scale = float(x.double().abs().sum())
        # On CUDA a thread adds up to 128 elements in float32 first.
        error = SUM_ERROR if device == "cpu" else 127 * 2.0**-24
        assert abs(result.item() - exact_sum(x, signs)) <= error * scale
        dense = (x.cpu().double().flatten() * torch.tensor(signs)).sum().item()
        assert abs(result.item() - dense) <= error * scale


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_whole_numbers_are_summed_exactly(backend):
    """Every float64 partial sum is a whole number below 2^53, so there is nothing to round."""
    x = torch.arange(100003, dtype=torch.float32)
    signs = contract_signs(x.numel(), seed=1, probe=1)
    expected = int((np.arange(100003, dtype=np.int64) * signs).sum())
    assert ops.signed_sum([x], seed=1, probe=1, backend=backend).item() == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_sum_of_a_probe_with_itself_counts_its_elements(backend):
    tensors = [torch.empty(shape) for shape in ((5,), (33, 40), (40000,))]
    ops.rademacher_(tensors, seed=12, probe=3, backend=backend)
    result = ops.signed_sum(tensors, seed=12, probe=3, backend=backend)
    assert result.tolist() == [tensor.numel() for tensor in tensors]


@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_of_shards_add_up(backend):
    x = torch.randn(70_001, generator=torch.Generator().manual_seed(2))
    whole = ops.signed_sum([x], seed=1, probe=0, numbers=[5], backend=backend).item()
    for cut in (1, 127, 2**15, 40_000, 70_000):
        shards = ops.signed_sum(
            [x[:cut], x[cut:]],
            seed=1,
            probe=0,
            numbers=[5, 5],
            offsets=[0, cut],
            backend=backend,
        )
        assert abs(shards.sum().item() - whole) <= SUM_ERROR * float(x.abs().sum())


@pytest.mark.parametrize("backend", BACKENDS)
def test_signed_sum_leaves_its_tensors_and_their_graph_alone(backend):
    x = torch.randn(50, requires_grad=True)
    before = x.detach().clone()
    result = ops.signed_sum([x * 1, x], seed=0, probe=0, backend=backend)
    assert not result.requires_grad
    assert torch.equal(x, before)
    assert x.grad is None


@pytest.mark.parametrize("backend", BACKENDS)
@property_test
@given(
    sizes=st.lists(st.sampled_from([0, 1, 5, 33, 200]), min_size=1, max_size=4),
    probes=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9),
    shift=st.sampled_from([0.0, 1e6]),
)
def test_running_statistics_against_numpy(backend, sizes, probes, shift):
    """Welford's mean and M2 of v . h per tensor and in total, also where the spread is small beside the mean."""
    entries = len(sizes) + 1
    mean, m2 = (torch.zeros(entries, dtype=torch.float64) for _ in range(2))
    count = torch.zeros((), dtype=torch.int64)
    samples = []
    for step, probe in enumerate(probes):
        rng = np.random.default_rng(step)
        signs = [contract_signs(n, seed=7, probe=probe, number=t) for t, n in enumerate(sizes)]
        products = [rng.standard_normal(n) + shift * v for n, v in zip(sizes, signs, strict=True)]
        ops.hutchinson_accumulate_(
            mean,
            m2,
            count,
            [torch.tensor(h) for h in products],
            seed=7,
            probe=probe,
            backend=backend,
        )
        parts = [math.fsum(h * v) for h, v in zip(products, signs, strict=True)]
        samples.append([*parts, math.fsum(parts)])
    expected = np.array(samples)
    assert count.item() == len(probes)
    np.testing.assert_allclose(mean.numpy(), expected.mean(0), rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(
        m2.numpy(),
        expected.var(0) * len(probes),
        rtol=1e-6,
        atol=1e-20 + 1e-13 * float(np.abs(expected).max() ** 2),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_accumulate_goes_on_from_what_it_was_given(backend):
    """Three samples 2, 4, 9 folded in one at a time: mean 5, M2 = 9 + 1 + 16."""
    sign = int(contract_signs(1, seed=0, probe=0)[0])
    mean, m2 = (torch.zeros(2, dtype=torch.float64) for _ in range(2))
    count = torch.zeros((), dtype=torch.int64)
    for value, so_far in ((2.0, (2.0, 0.0)), (4.0, (3.0, 2.0)), (9.0, (5.0, 26.0))):
        product = [torch.tensor([sign * value])]
        ops.hutchinson_accumulate_(mean, m2, count, product, seed=0, probe=0, backend=backend)
        assert (mean.tolist(), m2.tolist()) == ([so_far[0]] * 2, [so_far[1]] * 2)
    assert count.item() == 3


# Statistics. With N fair independent signs, sum / sqrt(N) is standard normal to four digits at these N; 4.9 standard
# deviations have probability 1e-6, so that a thousand such checks of a fair generator fail once in a thousand seeds.
# The seeds are fixed: a check that passes today passes forever.
BOUND = 4.9
N = 1 << 18


def probe_of(**coordinates) -> torch.Tensor:
    tensor = torch.empty(N, dtype=torch.float64)
    number = coordinates.pop("number", 0)
    ops.rademacher_([tensor], numbers=[number], **{"seed": 0, "probe": 0, **coordinates})
    return tensor


def assert_fair(signs: torch.Tensor) -> None:
    """signs: [..., n], each row n independent fair signs."""
    deviation = signs.sum(-1).abs().max().item() / math.sqrt(signs.shape[-1])
    assert deviation <= BOUND


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_signs_are_fair(seed):
    signs = probe_of(seed=seed)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert_fair(signs)
    assert_fair(signs.view(-1, 128).t())  # each bit of a Philox block
    assert_fair(signs.view(64, -1))  # each stretch


def test_neighbours_are_independent():
    signs = probe_of(seed=3)
    for lag in (1, 2, 31, 32, 33, 64, 96, 127, 128, 129, 4096, 2**15):
        assert_fair(signs[lag:] * signs[:-lag])


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([{"probe": k} for k in range(20)] + [{"probe": 2**31}], id="probes"),
        pytest.param([{"number": t} for t in range(20)] + [{"number": 2**31}], id="parameters"),
        pytest.param([{"seed": 1 << bit} for bit in range(0, 64, 3)] + [{}], id="seeds"),
        pytest.param([{}, {"probe": 1}, {"number": 1}, {"seed": 1}], id="swapped coordinates"),
        pytest.param(
            [{"offset": 0}, {"offset": 2**39}], id="high and low halves of a block number"
        ),
    ],
)
def test_streams_are_independent(others):
    """Also squares: v_i v_j over pairs of streams is what makes the estimator's variance right."""
    streams = []
    for coordinates in others:
        offset = coordinates.pop("offset", 0)
        streams.append(probe_of(**coordinates, offsets=[offset]))
    signs = torch.stack(streams)
    overlaps = (signs @ signs.t()).fill_diagonal_(0).abs().max().item()
    assert overlaps / math.sqrt(N) <= BOUND


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_of_a_known_matrix_have_the_known_mean_and_variance(backend):
    """tr A = E[v' A v], Var = 2 (||A||_F^2 - sum A_ii^2) for symmetric A (Avron and Toledo 2011)."""
    n, probes = 12, 2000
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    a = a + a.t()
    mean, m2 = (torch.zeros(2, dtype=torch.float64) for _ in range(2))
    count = torch.zeros((), dtype=torch.int64)
    v = torch.empty(n, dtype=torch.float64)
    for probe in range(probes):
        ops.rademacher_([v], seed=1, probe=probe, backend=backend)
        ops.hutchinson_accumulate_(mean, m2, count, [a @ v], seed=1, probe=probe, backend=backend)
    variance = 2 * (a.square().sum() - a.diagonal().square().sum()).item()
    assert abs(mean[-1].item() - a.trace().item()) <= BOUND * math.sqrt(variance / probes)
    # The variance of a sample variance is about variance^2 (kurtosis - 1) / K, with kurtosis < 15 for a quadratic form.
    measured = m2[-1].item() / (probes - 1)
    assert abs(measured / variance - 1) <= BOUND * math.sqrt(14 / probes)
