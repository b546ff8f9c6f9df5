"""A check is a function with a name; ``compare`` serves those that compare tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


class Mismatch(Exception):
    """A result is not what was expected; the message has both."""


@dataclass(frozen=True)
class Check:
    """One line of the self-check.

    Attributes:
        name: what is checked.
        run: raises where it does not hold, ``Mismatch`` where a result is wrong.
    """

    name: str
    run: Callable[[], None]

    def failure(self) -> str:
        """Runs the check, and returns what was expected and what came; "" where all is well."""
        try:
            with threads(1):  # more would mostly wait for each other: all tensors here are small
                self.run()
        except Mismatch as mismatch:
            return str(mismatch)
        except (
            Exception
        ) as error:  # a broken installation may raise anything, and the other checks are to run
            lines = str(error).splitlines() or [""]
            return f"expected no exception, got {type(error).__name__}: {lines[0]}"
        return ""


def compare(
    whose: str, results: Sequence[Tensor], expected: Sequence[Tensor], *, rtol: float = 0.0
) -> None:
    """Compares element by element; NaN equals NaN.

    Args:
        whose: results, for the message.
        results: tensors.
        expected: tensors, on any device.
        rtol: the largest error, relative to the largest finite element of the tensor; 0 where bits must agree.

    Raises:
        Mismatch: shapes or dtypes differ, or an element does; the message has the first one.
    """
    for t, (result, target) in enumerate(zip(results, expected, strict=True)):
        where = f" of result {t + 1}" if len(expected) > 1 else ""
        if result.shape != target.shape or result.dtype != target.dtype:
            raise Mismatch(
                f"expected {target.dtype} of shape {tuple(target.shape)}, got {result.dtype} of shape "
                f"{tuple(result.shape)}{where} from {whose}"
            )
        got, want = (x.detach().to("cpu", torch.float64).reshape(-1) for x in (result, target))
        size = want[want.isfinite()].abs().max() if want.isfinite().any() else 0.0
        same = (got == want) | (got.isnan() & want.isnan()) | ((got - want).abs() <= rtol * size)
        if not same.all():
            i = int((~same).nonzero()[0])
            within = f" to {rtol:.0e}" if rtol else ""
            raise Mismatch(
                f"expected {want[i].item()!r}{within}, got {got[i].item()!r} (element {i}{where}) from {whose}"
            )


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Torch and the kernels divide their work among ``n`` threads within it."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
