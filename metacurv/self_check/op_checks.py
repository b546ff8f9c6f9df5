"""Every op has a check, of its kernel and its torch twin against numbers worked out by hand, and against each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from metacurv.ops import _native
from metacurv.ops._reference.philox import philox4x32_10
from metacurv.self_check import by_hand, cases
from metacurv.self_check.check import Check, compare, threads

_NAMES = {"native": "the kernel", "reference": "the torch twin"}
_ROUNDING = 1e-6  # of float32: between what is worked out by hand and what a backend makes


@dataclass(frozen=True)
class Op:
    """An op and how closely its kernel on the CPU follows its twin.

    Attributes:
        by_hand: see the module ``by_hand``.
        case: see the module ``cases``.
        rtol: 0 where the two agree to the bit on the CPU.
        has_cuda: whether there is a CUDA kernel.
    """

    by_hand: by_hand.ByHand
    case: cases.Case
    rtol: float = 0.0
    has_cuda: bool = True

    @property
    def name(self) -> str:
        """The name of the op in ``torch.ops.metacurv``."""
        return self.case.__name__


OPS = [
    Op(by_hand.rademacher_, cases.rademacher_),
    Op(by_hand.signed_sum, cases.signed_sum),
    Op(by_hand.hutchinson_accumulate_, cases.hutchinson_accumulate_),
    Op(by_hand.reciprocal_lr_, cases.reciprocal_lr_),
    Op(by_hand.chain_draws, cases.chain_draws, rtol=2e-5, has_cuda=False),
    Op(by_hand.chain_columns, cases.chain_columns, rtol=2e-5, has_cuda=False),
]

# Counter, key and output, from kat_vectors in Random123 1.14: the digits of pi.
_PHILOX = (
    (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
    (0xA4093822, 0x299F31D0),
    (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
)


def has_kernels(device: torch.device) -> bool:
    """Tells whether kernels are loaded for ``device``."""
    return _native.cuda_compiled() if device.type == "cuda" else _native.native_available()


def op_checks(device: torch.device) -> list[Check]:
    """Returns a check for each op; where no kernels are loaded for ``device``, it is of the twin alone."""
    return [
        Check(op.name, partial(_check, op, device))
        for op in OPS
        if op.has_cuda or device.type == "cpu"
    ]


def _check(op: Op, device: torch.device) -> None:
    backends = ["native", "reference"] if has_kernels(device) else ["reference"]
    for backend in backends:
        for result, numbers in op.by_hand(backend, device):
            expected = torch.tensor(numbers, dtype=result.dtype)
            compare(_NAMES[backend], [result], [expected], rtol=_ROUNDING)
    if len(backends) == 2:
        with threads(2):  # which change no bit
            kernel = op.case("native", device)
        twin = op.case("reference", device)
        rtol = op.rtol if device.type == "cpu" else max(op.rtol, _ROUNDING)
        compare("the kernel", kernel, twin, rtol=rtol)


def philox() -> None:
    """Compares the generator with a known answer that its authors published."""
    counter, key, output = _PHILOX
    for backend, words in (
        ("native", _native.philox4x32_10(counter, key)),
        ("reference", philox4x32_10(counter, key)),
    ):
        if words is not None:
            compare(_NAMES[backend], [torch.tensor(words)], [torch.tensor(output)])
