"""The direction of a step and moves along it, by hand; also in half precision, and with rates that are tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from metacurv.estimators.probes.finite_difference import relative_step
from metacurv.optim.base_step import Rate
from metacurv.optim.directional.step_line import StepLine
from tests.helpers import DTYPES

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
INF, NAN = float("inf"), float("nan")


def in_memory(value: float) -> Tensor:
    """As a rate comes on a GPU."""
    return torch.tensor(value, dtype=torch.float64)


def step(line: StepLine, parameter: Tensor, after: list[float], keep: Rate, lr: Rate) -> None:
    """A step of one parameter, which is alone on the line."""
    parameter.copy_(torch.tensor(after))
    line.stepped([[keep]], [lr])


@each_dtype
@pytest.mark.parametrize("number", [float, in_memory])
def test_numbers_worked_by_hand(dtype: torch.dtype, number: Callable[[float], Rate]) -> None:
    """(0.5 * 4 - 1) / 0.25 = 4, (0.5 * -2 - 2) / 0.25 = -12, (0 - 0.5) / 0.25 = -2; 16 + 144 + 4 = 164, and 16 + 4 = 20."""
    start = torch.tensor([4.0, -2.0, 0.0], dtype=dtype)
    parameter = start.clone()
    line = StepLine([[parameter]])
    step(line, parameter, [1.0, 2.0, 0.5], number(0.5), number(0.25))
    u = torch.tensor([4.0, -12.0, -2.0])
    assert line.is_finite
    assert line.length.tolist() == pytest.approx([math.sqrt(164 / 20)], rel=1e-14)
    reach = line.reach.item()
    assert reach == pytest.approx(relative_step([dtype]) / math.sqrt(164 / 20), rel=1e-14)
    for sign in (1, -1):
        line.move(0, sign)
        expected = start.double() + sign * reach * u.double()
        # Elements are rounded to the dtype; of the arithmetic, float32 or float64, there is not much to see.
        torch.testing.assert_close(
            parameter.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-7
        )
    line.step_to([[0.5]], [0.5])
    assert parameter.tolist() == [0.0, 5.0, 1.0]
    line.go_after()
    assert parameter.tolist() == [1.0, 2.0, 0.5]
    line.go_before()
    assert torch.equal(parameter, start)
    assert parameter.dtype == dtype


def test_each_tensor_has_its_factor_and_each_scale_its_rate() -> None:
    """In one scale u is (2, 2) and (1, 1, 1): 11 over 14. Nothing was stepped in the second, which moves nothing."""
    one = torch.full((2,), 1.0)
    two = torch.full((3,), 2.0, dtype=torch.float64)
    three, empty = torch.full((1,), 4.0), torch.ones(0)
    line = StepLine([[one, two, empty], [], [three]])
    for x in (one, two, three):
        x.zero_()
    line.stepped([[1.0, 0.25, 3.0], [], [in_memory(0.5)]], [0.5, 7.0, 2.0])
    assert line.is_finite
    assert line.length.tolist() == pytest.approx([math.sqrt(11 / 14), 0.0, 0.25], rel=1e-14)
    assert line.reach[1] == 0
    line.step_to([[1.0, 0.25, 3.0], [], [0.5]], [0.25, 1.0, 1.0])
    assert (one.tolist(), two.tolist(), three.tolist()) == ([0.5] * 2, [0.25] * 3, [1.0])
    line.go_before(0)
    assert (one.tolist(), two.tolist(), three.tolist()) == ([1.0] * 2, [2.0] * 3, [1.0])
    line.move(1, 1)
    line.go_before()
    assert three.tolist() == [4.0]


def test_a_step_of_sgd_is_its_gradient() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0, 8.0]))
    parameter.grad = torch.tensor([0.5, 4.0, -1.0])
    line = StepLine([[parameter]])
    torch.optim.SGD([parameter], lr=0.125).step()
    line.stepped([[1.0]], [0.125])
    assert line.length.item() == pytest.approx(math.sqrt(17.25 / 69), rel=1e-14)
    before = parameter._version
    line.step_to([[1.0]], [1.0])
    assert parameter.tolist() == [0.5, -6.0, 9.0]
    assert parameter._version > before  # autograd is told
    assert parameter.is_leaf


@each_dtype
@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_a_step_that_is_not_finite_is_seen(dtype: torch.dtype, value: float) -> None:
    fine, bad, other = (torch.ones(n, dtype=dtype) for n in (5, 40, 5))
    line = StepLine([[fine, bad], [other]])
    bad[39] = value
    line.stepped([[1.0, 1.0], [1.0]], [0.1, 0.1])
    assert not line.is_finite


def test_so_is_overflow() -> None:
    """And a direction beyond the numbers of half precision, which float32 holds, is none."""
    parameter = torch.ones(2)
    line = StepLine([[parameter]])
    step(line, parameter, [0.5, 1e20], 1.0, 1e-20)
    assert not line.is_finite
    parameter = torch.ones(2, dtype=torch.float16)
    line = StepLine([[parameter]])
    step(line, parameter, [0.5, 2.0], 1.0, 1e-6)
    assert line.is_finite
    line.step_to([[1.0]], [2e-6])
    assert parameter.tolist() == [0.0, 3.0]


def test_half_precision_is_rounded_once() -> None:
    """bfloat16 has 1 and 1.0078125. 1.0078125 * 0.99609375 is below their middle, 1.00390625, and 0.001 more above it."""
    parameter = torch.tensor([1.0078125], dtype=torch.bfloat16)
    line = StepLine([[parameter]])
    step(line, parameter, [2.0078125], 1.0, 1.0)  # u = -1
    line.step_to([[0.99609375]], [0.001])
    assert parameter.tolist() == [1.0078125]
    line.step_to([[0.99609375]], [0.0])
    assert parameter.tolist() == [1.0]


def test_a_parameter_without_dimensions_keeps_its_dtype() -> None:
    parameter = torch.tensor(3.0)
    line = StepLine([[parameter]])
    parameter.fill_(1.0)
    line.stepped([[in_memory(0.5)]], [in_memory(0.25)])
    assert line.length.item() == pytest.approx(2 / 3, rel=1e-14)
    line.move(0, 1)
    assert parameter.item() == pytest.approx(3 + 2 * line.reach.item(), rel=1e-6)
    assert parameter.dtype == torch.float32


def test_strided_parameters() -> None:
    memory = torch.full((6, 4), 7.0)
    parameter = memory.t()[1:, ::2]
    start = parameter.clone()
    line = StepLine([[parameter]])
    parameter.sub_(1)
    line.stepped([[1.0]], [0.5])
    line.step_to([[1.0]], [1.0])
    assert torch.equal(parameter, start - 2)
    assert int((memory == 7).sum()) == memory.numel() - parameter.numel()
