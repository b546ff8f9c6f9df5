"""``step_direction_`` and ``move_`` on a GPU, against the torch twin on the same device. Skipped, and said so, without one."""

from __future__ import annotations

import pytest
import torch

from metacurv import ops
from tests.helpers import DTYPES, carved, waiting_is_an_error
from tests.layouts import READABLE, WRITABLE
from tests.test_cuda import DEVICE, mixed_list
from tests.test_cuda import pytestmark as needs_gpu
from tests.test_step_ops import a_step

pytestmark = needs_gpu

SIZES = [0, 1, 7, 31, 129, 16383, 16384, 16385, 100003]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def assert_twins_agree(before, after, keep, lr=1e-3):
    """Elements to the bit; sums, whose order is the kernel's own, closely, and in two runs to the bit."""
    native, twin = ([torch.full_like(x, 7) for x in before] for _ in range(2))
    sums = ops.step_direction_(native, before, after, keep, lr, backend="native")
    expected = ops.step_direction_(twin, before, after, keep, lr, backend="reference")
    for x, y in zip(native, twin, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(sums, expected, rtol=1e-12, atol=0, equal_nan=True)
    again = ops.step_direction_(native, before, after, keep, lr, backend="native")
    torch.testing.assert_close(again, sums, rtol=0, atol=0, equal_nan=True)
    for distance in (0.37, torch.tensor(0.37, dtype=torch.float64, device=DEVICE)):
        moved, expected = ([torch.full_like(x, 7) for x in before] for _ in range(2))
        ops.move_(moved, before, native, distance, backend="native")
        ops.move_(expected, before, native, distance, backend="reference")
        for x, y in zip(moved, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@each_dtype
@pytest.mark.parametrize("numel", SIZES)
def test_sizes_and_alignments(numel, dtype):
    before, after = (x.to(DEVICE) for x in a_step(numel + 1, dtype))
    for first in (0, 1):
        assert_twins_agree([before[first : first + numel]], [after[first : first + numel]], [0.9])
        direction, assert_guards_untouched = carved(numel, dtype, DEVICE, misalign=first)
        ops.step_direction_([direction], [before[:numel]], [after[:numel]], [0.9], 0.1)
        ops.move_([direction], [direction], [after[:numel]], 0.1)
        assert_guards_untouched()


@each_dtype
@pytest.mark.parametrize("layout", WRITABLE)
def test_written_layouts(layout, dtype):
    results = []
    for backend in ("native", "reference"):
        direction, before = (WRITABLE[layout](dtype, DEVICE) for _ in range(2))
        after = (before * 0.5).contiguous()
        ops.step_direction_([direction], [before], [after], [0.75], 0.1, backend=backend)
        ops.move_([before], [before], [direction], 0.1, backend=backend)
        results.append(
            [
                torch.empty(0, dtype=dtype, device=DEVICE).set_(tensor.untyped_storage())
                for tensor in (direction, before)
            ]
        )
    assert all(map(torch.equal, *results))


@each_dtype
@pytest.mark.parametrize("layout", READABLE)
def test_read_layouts(layout, dtype):
    before = READABLE[layout](dtype, DEVICE)
    assert_twins_agree([before], [(before * 0.5).contiguous()], [0.75])


@pytest.mark.parametrize("count", [0, 1, 80, 81, 500])
def test_lists_of_tensors(count):
    before = mixed_list(count)
    lr = torch.tensor(0.1, dtype=torch.float64, device=DEVICE)
    keep = [1 - 0.001 * t for t in range(count)]
    assert_twins_agree(before, [x * 0.5 for x in before], keep, lr)


def test_elements_that_are_not_finite_are_counted():
    before, after = (x.to(DEVICE) for x in a_step(40_000, torch.float32))
    after[[3, 16_384, 39_999]] = torch.tensor([torch.nan, torch.inf, -torch.inf], device=DEVICE)
    sums = ops.step_direction_([torch.empty_like(before)], [before], [after], [1.0], 0.1)
    assert sums[2].item() == 3


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_neither_waits_for_the_device():
    before = mixed_list(100)
    direction = [torch.empty_like(x) for x in before]
    number = torch.tensor(0.1, dtype=torch.float64, device=DEVICE)

    def run(number):
        ops.step_direction_(direction, before, before, [0.5] * 100, number, backend="native")
        ops.move_(before, before, direction, number, backend="native")

    run(number)  # so that nothing is loaded for the first time below
    torch.cuda.synchronize()
    with waiting_is_an_error():
        run(number)
        run(0.1)


def test_a_captured_graph_reads_its_numbers_anew():
    before, after = torch.ones(1000, device=DEVICE), torch.zeros(1000, device=DEVICE)
    direction, moved = torch.empty_like(before), torch.empty_like(before)
    lr = torch.tensor(0.5, dtype=torch.float64, device=DEVICE)

    def run():
        sums = ops.step_direction_([direction], [before], [after], [1.0], lr, backend="native")
        ops.move_([moved], [before], [direction], lr, backend="native")
        return sums

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the first launch of a kernel may load it
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sums = run()
    for value in (0.5, 0.25):
        lr.fill_(value)
        graph.replay()
        assert direction.unique().tolist() == [1 / value]
        assert moved.unique().tolist() == [2.0]
        assert sums.tolist() == [1000 / value**2, 1000.0, 0.0]
