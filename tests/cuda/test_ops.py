"""The CUDA kernels on a GPU, against the torch twin on the same device.

Without a GPU every test here is skipped, and says so; what can be told without one is in tests/cuda/emulation.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from metacurv import ops
from tests.cuda.gpu import DEVICE, needs_gpu
from tests.helpers import DTYPES, carved, contract_signs, waiting_is_an_error
from tests.problems.layouts import READABLE, WRITABLE

pytestmark = needs_gpu

SIZES = [0, 1, 31, 32, 33, 127, 128, 129, 4095, 4097, 16385, 100003]
OFFSETS = [0, 5, 8, 4096, 2**15 - 3, 2**32 * 128 - 7, 2**61 + 12345]

# A thread adds at most 128 elements in its own precision, float64 follows: at most 127 roundings
# of sum |x|.
ROUNDING = {torch.float64: 127 * 2.0**-53}
FLOAT32_ROUNDING = 127 * 2.0**-24


def whole_numbers(numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Small enough for every partial sum to be exact, so that no order of summation shows."""
    return (torch.arange(numel, device=DEVICE) % 37 - 18).to(dtype)


def mixed_list(count: int) -> list[torch.Tensor]:
    """Tensors of every dtype, layout and size: of 140 every combination, as 4, 5 and 7 share no factor."""
    dtypes = itertools.cycle(DTYPES)
    numels = itertools.cycle([100, 0, 1, 4096, 333, 17000, 40000])
    tensors = [
        whole_numbers(numel, dtype)
        for _, dtype, numel in zip(range(count), dtypes, numels, strict=False)
    ]
    layouts = itertools.cycle(
        [
            lambda x: x,
            lambda x: x[1:],  # starts at an odd address
            lambda x: x[16:],  # at one of 16 bytes, whatever the dtype
            lambda x: x[::2],
            lambda x: x[: x.numel() // 8 * 8].view(-1, 8).t(),
        ]
    )
    return [layout(x) for layout, x in zip(layouts, tensors, strict=False)]


@pytest.mark.parametrize("numel", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes_offsets_and_alignments(dtype, numel):
    for offset, misalign in itertools.product(OFFSETS, [0, 1, 4]):
        coordinates = {"seed": 2**64 - 3, "probe": 2, "numbers": [6], "offsets": [offset]}
        x, assert_guards_untouched = carved(numel, dtype, DEVICE, misalign=misalign)
        ops.rademacher_([x], backend="native", **coordinates)
        signs = contract_signs(numel, seed=2**64 - 3, probe=2, number=6, offset=offset)
        assert torch.equal(x.cpu(), torch.tensor(signs).to(dtype))
        assert_guards_untouched()

        x.copy_(whole_numbers(numel, dtype))
        native = ops.signed_sum([x], backend="native", **coordinates)
        assert native.dtype == torch.float64
        assert native.device == x.device
        assert torch.equal(native, ops.signed_sum([x], backend="reference", **coordinates))


@pytest.mark.parametrize("layout", WRITABLE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fill_layouts(dtype, layout):
    """A strided tensor gets the signs of its row-major elements; its neighbours in memory stay."""
    for offset in (0, 5, 2**15 - 3):
        native, twin = (WRITABLE[layout](dtype, DEVICE) for _ in range(2))
        for tensor, backend in ((native, "native"), (twin, "reference")):
            ops.rademacher_([tensor], seed=4, probe=0, offsets=[offset], backend=backend)
        whole = [
            torch.empty(0, dtype=dtype, device=DEVICE).set_(tensor.untyped_storage())
            for tensor in (native, twin)
        ]
        assert torch.equal(*whole)


@pytest.mark.parametrize("layout", READABLE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sum_layouts(dtype, layout):
    x = READABLE[layout](dtype, DEVICE)
    for offset in (0, 5, 2**15 - 3):
        coordinates = {"seed": 4, "probe": 1, "offsets": [offset]}
        native = ops.signed_sum([x], backend="native", **coordinates)
        assert torch.equal(native, ops.signed_sum([x], backend="reference", **coordinates))


@pytest.mark.parametrize("numel", [129, 4097, 100003, 20_000_001])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_random_numbers(dtype, numel):
    """Within the rounding of at most 127 additions in a thread; and two runs give the same bits."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    x = torch.randn(numel, device=DEVICE, generator=generator).to(dtype)
    native = ops.signed_sum([x, x[1:]], seed=1, probe=3, backend="native")
    twin = ops.signed_sum([x, x[1:]], seed=1, probe=3, backend="reference")
    bound = ROUNDING.get(dtype, FLOAT32_ROUNDING) * x.double().abs().sum()
    assert ((native - twin).abs() <= bound).all()
    assert torch.equal(native, ops.signed_sum([x, x[1:]], seed=1, probe=3, backend="native"))


@pytest.mark.parametrize("count", [0, 1, 60, 61, 500, 1000])
def test_lists_of_tensors(count):
    """One call over many tensors, which takes several launches, is many calls over one tensor."""
    tensors = mixed_list(count)
    coordinates = {
        "seed": 8,
        "probe": torch.tensor(3, device=DEVICE),
        "numbers": [7 * t for t in range(count)],
        "offsets": [1000 * t for t in range(count)],
    }
    native = ops.signed_sum(tensors, backend="native", **coordinates)
    assert torch.equal(native, ops.signed_sum(tensors, backend="reference", **coordinates))
    twins = [tensor.clone() for tensor in tensors]
    ops.rademacher_(tensors, backend="native", **coordinates)
    ops.rademacher_(twins, backend="reference", **coordinates)
    assert all(torch.equal(tensor, twin) for tensor, twin in zip(tensors, twins, strict=True))


def test_a_list_of_strided_tensors():
    """A launch has room for 96 dimensions that do not merge; these are 240."""
    tensors = [READABLE["six dimensions"](torch.float32, DEVICE) for _ in range(40)]
    native = ops.signed_sum(tensors, seed=8, probe=3, backend="native")
    assert torch.equal(native, ops.signed_sum(tensors, seed=8, probe=3, backend="reference"))


@pytest.mark.parametrize("count", [0, 1, 5, 61, 1000])
def test_hutchinson_accumulate(count):
    products = mixed_list(count)
    statistics = {
        backend: [
            torch.zeros(count + 1, dtype=torch.float64, device=DEVICE),
            torch.zeros(count + 1, dtype=torch.float64, device=DEVICE),
            torch.tensor(0, device=DEVICE),
        ]
        for backend in ("native", "reference")
    }
    for probe in range(4):
        for backend, (mean, m2, n) in statistics.items():
            ops.hutchinson_accumulate_(mean, m2, n, products, seed=5, probe=probe, backend=backend)
    for native, twin in zip(statistics["native"], statistics["reference"], strict=True):
        torch.testing.assert_close(native, twin, rtol=1e-12, atol=1e-12)
    assert statistics["native"][2].item() == 4


@pytest.mark.parametrize("trace_dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float64], ids=str)
def test_reciprocal_lr(scale_dtype, trace_dtype):
    inf, nan = float("inf"), float("nan")
    for previous, trace, alpha in itertools.product(
        [1.0, 0.25, 0.0, nan], [0.0, 12.5, -3.0, 1e30, inf, -inf, nan], [0.0, 0.01, 1e300]
    ):
        native, twin = (torch.tensor(previous, dtype=scale_dtype, device=DEVICE) for _ in range(2))
        reading = torch.tensor(trace, dtype=trace_dtype, device=DEVICE)
        ops.reciprocal_lr_(native, reading, alpha=alpha, backend="native")
        ops.reciprocal_lr_(twin, reading, alpha=alpha, backend="reference")
        assert torch.equal(native, twin)


def one_reading(state: dict[str, torch.Tensor], products: list[torch.Tensor]) -> None:
    """What a due training step runs on the device, the advance of the probe number included."""
    ops.rademacher_([state["probe_vector"]], seed=6, probe=state["probe"], backend="native")
    ops.hutchinson_accumulate_(
        state["mean"],
        state["m2"],
        state["count"],
        products,
        seed=6,
        probe=state["probe"],
        backend="native",
    )
    ops.reciprocal_lr_(state["scale"], state["mean"][-1], alpha=0.01, backend="native")
    state["probe"].add_(1)


def fresh_state(count: int) -> dict[str, torch.Tensor]:
    return {
        "probe": torch.tensor(0, device=DEVICE),
        "probe_vector": torch.empty(5000, device=DEVICE),
        "mean": torch.zeros(count + 1, dtype=torch.float64, device=DEVICE),
        "m2": torch.zeros(count + 1, dtype=torch.float64, device=DEVICE),
        "count": torch.tensor(0, device=DEVICE),
        "scale": torch.tensor(1.0, device=DEVICE),
    }


def test_a_captured_graph_advances_its_probe():
    """Replays of one captured reading are the same bits as readings run one by one."""
    products = mixed_list(70)
    eager = fresh_state(len(products))
    replayed = fresh_state(len(products))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(
        side
    ):  # the first launch of a kernel may load it, which is no capturable work
        one_reading(fresh_state(len(products)), products)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        one_reading(replayed, products)
    assert replayed["count"].item() == 0  # captured, not run
    for probe in range(1, 6):
        one_reading(eager, products)
        graph.replay()
        assert replayed["probe"].item() == probe
        for name, value in eager.items():
            assert torch.equal(value, replayed[name]), name


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("probe", ["int", "tensor"])
def test_no_op_waits_for_the_device(probe):
    products = mixed_list(70)
    state = fresh_state(len(products))
    one_reading(state, products)  # so that nothing is loaded for the first time below
    torch.cuda.synchronize()
    with waiting_is_an_error():
        one_reading(state, products)
        number = 3 if probe == "int" else state["probe"]
        ops.signed_sum(products, seed=1, probe=number, backend="native")


def test_the_current_stream_orders_the_work():
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        x = torch.zeros(1_000_000, device=DEVICE)
        torch.cuda._sleep(
            50_000_000
        )  # cycles: work on any other stream would overtake what follows
        ops.rademacher_([x], seed=3, probe=1, backend="native")
        result = ops.signed_sum([x], seed=3, probe=1, backend="native")
    side.synchronize()
    assert result.item() == x.numel()


def test_a_device_that_is_not_current():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = torch.ones(1000, device="cuda:1")
    with torch.cuda.device(0):
        native = ops.signed_sum([x], seed=3, probe=1, backend="native")
    assert native.device == x.device
    assert torch.equal(native, ops.signed_sum([x], seed=3, probe=1, backend="reference"))


def test_statistics_on_another_device_are_refused():
    """By the op itself as well: a kernel that wrote to host memory would end the process."""
    probe = torch.tensor(0, device=DEVICE)
    mean, m2 = (torch.zeros(1, dtype=torch.float64) for _ in range(2))
    with pytest.raises(RuntimeError, match="count and probe must be on one device"):
        torch.ops.metacurv.hutchinson_accumulate_(mean, m2, torch.tensor(0), [], 0, probe, [], [])


@pytest.mark.slow
def test_more_than_2_to_31_elements():
    numel = 2**31 + 4099
    if torch.cuda.mem_get_info()[0] < 2.5 * numel:
        pytest.skip(f"needs {2.5 * numel / 2**30:.0f} GiB of free GPU memory")
    x = torch.empty(numel, dtype=torch.bfloat16, device=DEVICE)
    ops.rademacher_([x], seed=3, probe=1, backend="native")
    signs = contract_signs(9000, seed=3, probe=1, offset=numel - 9000)
    assert torch.equal(x[-9000:].cpu(), torch.tensor(signs).to(torch.bfloat16))
    assert ops.signed_sum([x], seed=3, probe=1, backend="native").item() == numel
