"""Native equals reference exactly, whatever the dtype, size, offset, layout, list, instruction set or thread count.

The signs themselves are judged in ``test_philox.py`` and the sums in ``test_ops_values.py``, neither against the other twin.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metacurv import ops
from tests.helpers import DTYPES, SEEDS, carved, contract_signs, needs_native, property_test
from tests.problems.layouts import READABLE, WRITABLE

pytestmark = needs_native

SIZES = [0, 1, 31, 32, 33, 127, 128, 129, 4095, 32767, 32768, 32769, 100003]
OFFSETS = [0, 5, 2**15 - 3, 2**32 * 128 - 7, 2**61 + 12345]

BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def same_bits(x: torch.Tensor, y: torch.Tensor) -> bool:
    return torch.equal(x.view(BITS[x.element_size()]), y.view(BITS[y.element_size()]))


def numbers_of(numel: int, dtype: torch.dtype, *, seed: int = 0) -> torch.Tensor:
    """Numbers of widely different size, in which the order of summation shows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(numel, generator=generator, dtype=torch.float64)
    return (x * torch.exp2(torch.randint(-8, 9, (numel,), generator=generator))).to(dtype)


def sums(tensors, backend, **coordinates):
    return ops.signed_sum(tensors, backend=backend, **{"seed": 11, "probe": 2, **coordinates})


@pytest.mark.parametrize("numel", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes_and_offsets(dtype, numel):
    x = numbers_of(numel, dtype)
    for offset, misalign in itertools.product(OFFSETS, [0, 1]):
        coordinates = {"seed": 11, "probe": 2, "numbers": [6], "offsets": [offset]}
        twin, _ = carved(numel, dtype)
        native, assert_guards_untouched = carved(numel, dtype, misalign=misalign)
        ops.rademacher_([twin], backend="reference", **coordinates)
        ops.rademacher_([native], backend="native", **coordinates)
        assert same_bits(native, twin)
        assert_guards_untouched()
        signs = contract_signs(numel, seed=11, probe=2, number=6, offset=offset)
        assert torch.equal(native, torch.tensor(signs).to(dtype))

        native.copy_(x)
        assert same_bits(
            sums([native], "native", **coordinates), sums([x], "reference", **coordinates)
        )
        assert torch.equal(native, x)
        assert_guards_untouched()


@pytest.mark.parametrize("layout", WRITABLE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fill_layouts(dtype, layout):
    """A strided tensor gets the signs of its row-major elements, and its neighbours in memory nothing."""
    for offset in (0, 5, 2**15 - 3):
        native, twin = (WRITABLE[layout](dtype, "cpu") for _ in range(2))
        untouched = native.untyped_storage().nbytes() // native.element_size() - native.numel()
        for tensor, backend in ((native, "native"), (twin, "reference")):
            tensor.fill_(7)
            ops.rademacher_([tensor], seed=4, probe=0, offsets=[offset], backend=backend)
        assert torch.equal(native, twin)
        signs = contract_signs(native.numel(), seed=4, probe=0, offset=offset)
        assert torch.equal(native.flatten(), torch.tensor(signs).to(dtype))
        whole = [
            torch.empty(0, dtype=dtype).set_(tensor.untyped_storage()) for tensor in (native, twin)
        ]
        assert same_bits(*whole)
        assert int((whole[0].abs() != 1).sum()) <= untouched


@pytest.mark.parametrize("layout", READABLE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sum_layouts(dtype, layout):
    x = READABLE[layout](dtype, "cpu")
    for offset in (0, 5, 2**15 - 3):
        native = sums([x], "native", offsets=[offset])
        assert same_bits(native, sums([x], "reference", offsets=[offset]))
        assert same_bits(native, sums([x.contiguous()], "native", offsets=[offset]))


def test_one_list_of_everything():
    """Mixed dtypes, layouts and sizes, empty tensors between them, numbers and offsets at their limits."""
    tensors = [
        make(dtype, "cpu") for dtype, make in itertools.product(DTYPES, WRITABLE.values())
    ] + [torch.empty(0), numbers_of(100003, torch.float32), torch.empty(0, 3)]
    count = len(tensors)
    coordinates = {
        "seed": 2**64 - 1,
        "probe": 2**32 - 1,
        "numbers": [2**32 - 1 - t for t in range(count)],
        "offsets": [(2**t if t < 60 else t) for t in range(count)],
    }
    assert same_bits(
        sums(tensors, "native", **coordinates), sums(tensors, "reference", **coordinates)
    )
    twins = [tensor.clone() for tensor in tensors]
    ops.rademacher_(tensors, backend="native", **coordinates)
    ops.rademacher_(twins, backend="reference", **coordinates)
    assert all(torch.equal(x, y) for x, y in zip(tensors, twins, strict=True))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_empty_lists(backend):
    ops.rademacher_([], seed=0, probe=0, backend=backend)
    result = ops.signed_sum([], seed=0, probe=0, backend=backend)
    assert result.shape == (0,)
    assert result.dtype == torch.float64


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_subnormal_and_extreme_numbers(dtype):
    info = torch.finfo(dtype)
    numbers = [
        0.0,
        -0.0,
        info.tiny,
        info.tiny / 4,
        info.smallest_normal,
        info.max / 2**12,
        info.eps,
    ]
    x = torch.tensor(numbers * 40, dtype=dtype)
    assert same_bits(sums([x], "native"), sums([x], "reference"))
    dense = (x.double() * torch.tensor(contract_signs(x.numel(), seed=11, probe=2))).sum()
    assert sums([x], "native")[0] == pytest.approx(float(dense), rel=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_that_are_not_finite_come_through(dtype, bad):
    x = numbers_of(200, dtype)
    x[77] = bad
    native, twin = sums([x], "native"), sums([x], "reference")
    assert torch.allclose(native, twin, rtol=0, atol=0, equal_nan=True)
    assert not native.isfinite().any()


@st.composite
def strided_tensors(draw):
    """Up to four dimensions, any order of them in memory, any steps through them."""
    dtype = draw(st.sampled_from(DTYPES))
    sizes = draw(st.lists(st.integers(0, 17), max_size=4))
    steps = draw(st.lists(st.integers(1, 3), min_size=len(sizes), max_size=len(sizes)))
    order = draw(st.permutations(range(len(sizes))))
    memory = [sizes[d] * steps[d] for d in order]
    numel = torch.Size(memory).numel()
    whole = numbers_of(numel, dtype, seed=numel).view(memory)
    whole = whole.permute([order.index(d) for d in range(len(sizes))])
    return whole[tuple(slice(None, None, step) for step in steps)]


@property_test
@given(
    tensors=st.lists(strided_tensors(), max_size=4),
    seed=st.one_of(st.sampled_from(SEEDS), st.integers(0, 2**64 - 1)),
    probe=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_any_list_of_strided_tensors(tensors, seed, probe, data):
    def one_for_each(strategy):
        return data.draw(st.lists(strategy, min_size=len(tensors), max_size=len(tensors)))

    coordinates = {
        "seed": seed,
        "probe": probe,
        "numbers": one_for_each(st.integers(0, 2**32 - 1)),
        "offsets": one_for_each(
            st.one_of(st.integers(0, 300), st.sampled_from(OFFSETS), st.integers(0, 2**61))
        ),
    }
    assert same_bits(
        sums(tensors, "native", **coordinates), sums(tensors, "reference", **coordinates)
    )
    twins = [tensor.clone() for tensor in tensors]
    ops.rademacher_(tensors, backend="native", **coordinates)
    ops.rademacher_(twins, backend="reference", **coordinates)
    for t, (tensor, twin) in enumerate(zip(tensors, twins, strict=True)):
        assert torch.equal(tensor, twin)
        signs = contract_signs(
            tensor.numel(),
            seed=seed,
            probe=probe,
            number=coordinates["numbers"][t],
            offset=coordinates["offsets"][t],
        )
        assert torch.equal(tensor.flatten(), torch.tensor(signs).to(tensor.dtype))


def test_accumulate_over_many_probes():
    shapes = [(40, 100), (100,), (0,), (17, 3), (33000,)]
    statistics = {}
    for backend in ("native", "reference"):
        mean, m2 = (torch.zeros(len(shapes) + 1, dtype=torch.float64) for _ in range(2))
        count = torch.zeros((), dtype=torch.int64)
        for probe in range(7):
            products = [
                numbers_of(torch.Size(shape).numel(), dtype, seed=probe).view(shape)
                for shape, dtype in zip(shapes, itertools.cycle(DTYPES), strict=False)
            ]
            ops.hutchinson_accumulate_(
                mean, m2, count, products, seed=3, probe=probe, backend=backend
            )
        statistics[backend] = mean, m2, count
    for native, twin in zip(statistics["native"], statistics["reference"], strict=True):
        assert torch.equal(native, twin)
    assert statistics["native"][2].item() == 7


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("trace_dtype", [torch.float32, torch.float64], ids=str)
def test_reciprocal_lr(scale_dtype, trace_dtype):
    inf, nan = float("inf"), float("nan")
    previous = [1.0, 0.3, 2.0**-40, 0.0, -1.0, 7.0, nan, inf, 2.0**-41]
    traces = [0.0, -0.0, 1e-30, 0.1, 7.3, 338.0, 1e30, 3e38, -5.0, nan, inf, -inf]
    alphas = [0.0, 1e-4, 0.01, 1.0, 1e30, 1e300]
    for old, trace, alpha in itertools.product(previous, traces, alphas):
        native, twin = (torch.tensor(old, dtype=scale_dtype) for _ in range(2))
        reading = torch.tensor(trace, dtype=trace_dtype)
        ops.reciprocal_lr_(native, reading, alpha=alpha, backend="native")
        ops.reciprocal_lr_(twin, reading, alpha=alpha, backend="reference")
        assert torch.equal(native, twin), (old, trace, alpha)


@property_test
@given(
    old=st.floats(width=32),
    trace=st.floats(),
    alpha=st.floats(0, allow_infinity=False, allow_nan=False),
)
def test_reciprocal_lr_of_anything(old, trace, alpha):
    for dtype in (torch.float32, torch.float64):
        native, twin = (torch.tensor(old, dtype=dtype) for _ in range(2))
        reading = torch.tensor(trace, dtype=torch.float64)
        ops.reciprocal_lr_(native, reading, alpha=alpha, backend="native")
        ops.reciprocal_lr_(twin, reading, alpha=alpha, backend="reference")
        assert torch.equal(native, twin)
        assert 2.0**-40 <= native.item() <= 1


def test_more_elements_than_the_twin_takes_at_a_time():
    """Its pieces end where chunks do, also when the first begins inside one."""
    x = numbers_of((1 << 20) + 50_001, torch.float64)
    for probe in range(4):
        coordinates = {"probe": probe, "offsets": [2**15 - 3]}
        assert same_bits(sums([x], "native", **coordinates), sums([x], "reference", **coordinates))


def test_any_thread_count(restore_threads):
    """Enough chunks for several threads, beginning in the middle of one."""
    tensors = [
        numbers_of(700_001, torch.float32),
        numbers_of(300_000, torch.float64).view(600, 500).t(),
    ]
    offsets = [2**15 - 3, 77]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        filled = [torch.empty_like(tensor) for tensor in tensors]
        ops.rademacher_(filled, seed=8, probe=1, offsets=offsets, backend="native")
        results.append([*filled, sums(tensors, "native", offsets=offsets)])
    torch.set_num_threads(1)
    twins = [torch.empty_like(tensor) for tensor in tensors]
    ops.rademacher_(twins, seed=8, probe=1, offsets=offsets, backend="reference")
    expected = [*twins, sums(tensors, "reference", offsets=offsets)]
    for result in results:
        assert all(torch.equal(x, y) for x, y in zip(result, expected, strict=True))


def test_the_same_from_two_python_threads():
    """Kernels hold no state: calls that overlap do not disturb each other."""
    from concurrent.futures import ThreadPoolExecutor

    x = numbers_of(200_000, torch.float32)
    expected = [sums([x], "native", probe=probe) for probe in range(16)]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda probe: sums([x], "native", probe=probe), range(16)))
    assert all(torch.equal(x, y) for x, y in zip(results, expected, strict=True))
