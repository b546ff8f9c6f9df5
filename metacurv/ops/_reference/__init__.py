"""The torch twin of every native op: the specification, and the fallback where the compiled module is missing.

Each method does in plain tensor arithmetic, on any device and without a host sync, what the kernel of the same name does. On
CPU the two agree bit for bit, sums included: the order of summation is part of the specification.
"""

from collections.abc import Callable
from typing import Any

from metacurv.ops._reference import chains, probes, rates


class OpSet(chains.ChainOps, rates.RateOps):
    """All ops as methods with positional arguments, unchecked. Here they are the twins; kernels override them."""


# What kernels return of fake tensors, by the name of the overload.
SHAPES: dict[str, Callable[..., Any]] = {**probes.SHAPES, **chains.SHAPES}

__all__ = ["SHAPES", "OpSet"]
