"""Every op has a check, of its kernel and its torch twin against numbers worked out by hand, and against each other.

The function that has an op's name calls it on small inputs, and yields each result with the numbers that it must hold, nested
as they are in it. Then it calls the op on larger inputs of several dtypes and layouts, and of sizes with a remainder: their
results come with None, as kernel and twin are compared there. Signs of the small inputs are those of seed 0, probe 0, parameter
0. They are the bits of ``PHILOX``, lowest bit first, and begin with - + - + - + - - + +.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metacurv import _validate, ops
from metacurv.ops import _native
from metacurv.ops._reference.philox import philox4x32_10
from metacurv.self_check.checks import Check, compare, threads

# Philox4x32-10 of counter 0, key 0: the first vector of kat_vectors in Random123 (github.com/DEShawResearch/random123).
PHILOX = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)

_NAMES = {"native": "the kernel", "reference": "the torch twin"}
_ROUNDING = 1e-6  # of float32: between what is worked out by hand and what a backend makes
_SEED, _PROBE = 2**64 - 3, 2**32 - 2  # of larger inputs

Results = Iterator[tuple[Tensor, object]]


def _numbers(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns normal numbers on the CPU, where kernel and twin add in one order; on a GPU whole ones, exact in any order."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    if device.type == "cpu":
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return torch.randint(-8, 9, shape, generator=generator).to(device, dtype)


def _lists(device: torch.device) -> tuple[list[Tensor], list[int]]:
    """Returns tensors of every dtype, and offsets that are no multiples of a block.

    The tensors are empty, small, large enough to be divided among threads, and strided.
    """
    tensors = []
    for dtype in _validate.DTYPES:
        tensors += [_numbers(device, size, dtype=dtype) for size in (0, 1, 131, 40_001)]
        tensors.append(_numbers(device, 50, 60, dtype=dtype).t()[1::2])
    return tensors, [2**40 + 7 * t for t in range(len(tensors))]


def rademacher_(backend: str, device: torch.device) -> Results:
    """A bit of ``PHILOX`` that is set stands for -1."""
    signs = torch.empty(128, device=device)
    ops.rademacher_([signs], seed=0, probe=0, backend=backend)
    bits = (word >> bit & 1 for word in PHILOX for bit in range(32))
    yield signs, [1.0 - 2.0 * bit for bit in bits]

    tensors, offsets = _lists(device)
    ops.rademacher_(tensors, seed=_SEED, probe=_PROBE, offsets=offsets, backend=backend)
    for tensor in tensors:
        yield tensor, None


def signed_sum(backend: str, device: torch.device) -> Results:
    """The ten powers of two add up to 1023, less twice those with a minus: the lowest ten bits of ``PHILOX``, 213."""
    powers = 2.0 ** torch.arange(10, device=device)
    yield ops.signed_sum([powers], seed=0, probe=0, backend=backend), [597.0]

    tensors, offsets = _lists(device)
    for probe in (_PROBE, torch.tensor(_PROBE, device=device)):
        total = ops.signed_sum(tensors, seed=_SEED, probe=probe, offsets=offsets, backend=backend)
        yield total, None


def hutchinson_accumulate_(backend: str, device: torch.device) -> Results:
    """The samples 1 and -3 have the mean -1, and squared deviations that add up to 8."""
    mean, m2 = (torch.full((2,), x, dtype=torch.float64, device=device) for x in (1.0, 0.0))
    count = torch.ones((), dtype=torch.int64, device=device)
    products = [torch.tensor([3.0], device=device)]
    ops.hutchinson_accumulate_(mean, m2, count, products, seed=0, probe=0, backend=backend)
    yield from ((mean, [-1.0, -1.0]), (m2, [8.0, 8.0]), (count, 2))

    products, _ = _lists(device)
    n = len(products) + 1
    mean, m2 = (torch.zeros(n, dtype=torch.float64, device=device) for _ in range(2))
    count = torch.zeros((), dtype=torch.int64, device=device)
    for probe in range(3):
        ops.hutchinson_accumulate_(
            mean, m2, count, products, seed=_SEED, probe=probe, backend=backend
        )
    yield from ((mean, None), (m2, None), (count, None))


def reciprocal_lr_(backend: str, device: torch.device) -> Results:
    """The scale becomes 1 / (1 + 0.5 * 6), and a trace that is not a number leaves it there.

    Then traces are of all kinds, and one of the scales is not a number.
    """
    scale = torch.ones(1, device=device)
    for trace in (6.0, math.nan):
        reading = torch.tensor([trace], device=device)
        ops.reciprocal_lr_(scale, reading, alpha=0.5, backend=backend)
    yield scale, [0.25]

    for trace in (0.3, 12.5, 1e30, -1.0, math.inf, math.nan):
        for before in (0.3, math.nan):
            scale = torch.tensor(before, device=device)
            reading = torch.tensor(trace, dtype=torch.float64, device=device)
            ops.reciprocal_lr_(scale, reading, alpha=0.1, backend=backend)
            yield scale, None


def _one_layer(device: torch.device, *numbers: int) -> list[Any]:
    """Returns the arguments of a chain op, with ``numbers`` among them.

    The layer is linear, without a bias and with an input (3, 4), under a softmax with two classes of probability 1/2.
    """
    log_p = torch.full((1, 2), math.log(0.5), device=device)
    inputs = [torch.tensor([[3.0, 4.0]], device=device)]
    return [log_p, torch.ones(1, device=device), *numbers, inputs, [], [], []]


def _three_layers(device: torch.device, *numbers: int) -> list[Any]:
    """Returns the arguments for linear layers of widths 10, 37, 9 and 100 from the top, with a ReLU and another activation."""
    log_p, weight = _numbers(device, 50, 10).log_softmax(1), _numbers(device, 50).abs()
    inputs = [_numbers(device, 50, width) for width in (37, 9, 100)]
    weights = [_numbers(device, 10, 37), _numbers(device, 37, 9)]
    slopes, are_of_relu = [inputs[0], _numbers(device, 50, 9)], [True, False]
    return [log_p, weight, *numbers, inputs, weights, slopes, are_of_relu]


def chain_draws(backend: str, device: torch.device) -> Results:
    """The factor times (-1, 1) has the squared norm 1, so its outer product with the input has 25."""
    draws = ops.implementation(backend, device).chain_draws
    yield draws(*_one_layer(device, 0, 0, 1)), [[25.0, 1.0]]
    yield draws(*_three_layers(device, -3, _PROBE, 3)), None


def chain_columns(backend: str, device: torch.device) -> Results:
    """The factor of diag(p) - p p' has one column, whose squared norm is the trace, 1/2."""
    columns = ops.implementation(backend, device).chain_columns
    yield columns(*_one_layer(device, 0, 1)), [[12.5, 0.5]]
    yield columns(*_three_layers(device, 0, 9)), None


@dataclass(frozen=True)
class Op:
    """An op and how closely its kernel on the CPU follows its twin.

    Attributes:
        run: calls the op of a backend on a device; its name is that in ``torch.ops.metacurv``.
        rtol: 0 where the two agree to the bit on the CPU.
        has_cuda: whether there is a CUDA kernel.
    """

    run: Callable[[str, torch.device], Results]
    rtol: float = 0.0
    has_cuda: bool = True

    @property
    def name(self) -> str:
        """The name of the op."""
        return self.run.__name__


OPS = [
    Op(rademacher_),
    Op(signed_sum),
    Op(hutchinson_accumulate_),
    Op(reciprocal_lr_),
    Op(chain_draws, rtol=2e-5, has_cuda=False),
    Op(chain_columns, rtol=2e-5, has_cuda=False),
]


def has_kernels(device: torch.device) -> bool:
    """Tells whether kernels are loaded for ``device``."""
    return _native.cuda_compiled() if device.type == "cuda" else _native.native_available()


def op_checks(device: torch.device) -> list[Check]:
    """Returns a check for each op, and before them one of the generator of random numbers, which is the CPU's.

    Where no kernels are loaded for ``device``, they are of the twins alone.
    """
    is_cpu = device.type == "cpu"
    generator = [Check("Philox4x32-10", philox)] if is_cpu else []
    of_ops = [Check(op.name, partial(_check, op, device)) for op in OPS if op.has_cuda or is_cpu]
    return generator + of_ops


def _check(op: Op, device: torch.device) -> None:
    backends = ["native", "reference"] if has_kernels(device) else ["reference"]
    larger: dict[str, list[Tensor]] = {backend: [] for backend in backends}
    for backend in backends:
        with threads(2 if backend == "native" else 1):  # which change no bit
            for result, numbers in op.run(backend, device):
                if numbers is None:
                    larger[backend].append(result)
                else:
                    expected = torch.tensor(numbers, dtype=result.dtype)
                    compare(_NAMES[backend], [result], [expected], rtol=_ROUNDING)
    if "native" in larger:
        rtol = op.rtol if device.type == "cpu" else max(op.rtol, _ROUNDING)
        compare("the kernel", larger["native"], larger["reference"], rtol=rtol)


def philox() -> None:
    """Compares the generator with a known answer that its authors published."""
    # Counter, key and output, from kat_vectors in Random123 1.14: the digits of pi.
    counter, key = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    output = (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)
    for backend, words in (
        ("native", _native.philox4x32_10(counter, key)),
        ("reference", philox4x32_10(counter, key)),
    ):
        if words is not None:
            compare(_NAMES[backend], [torch.tensor(words)], [torch.tensor(output)])
