"""Layouts: which part of an activation belongs to which example of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The way to bring a tensor of a given shape to one row an example.

    ``style``: "axis": examples run along ``axis``; "major": along the first axis in blocks of several rows each; "minor":
    along the first axis, interleaved; "whole": all is one example, since examples interact or could not be told apart.
    ``examples``: the number of examples, 1 for "whole".
    """

    style: Literal["axis", "major", "minor", "whole"]
    examples: int
    axis: int = 0

    def bring(self, x: Tensor, lead: int = 0) -> Tensor:
        """Brings [*lead, *shape] to [*lead, examples, *rest], a view where strides allow. ``lead``: number of axes in front."""
        if self.style == "axis":
            return x if self.axis == 0 else x.movedim(lead + self.axis, lead)
        if self.style == "whole":
            return x.unsqueeze(lead)
        front, rows, rest = x.shape[:lead], x.shape[lead], x.shape[lead + 1 :]
        if self.style == "major":
            return x.reshape(*front, self.examples, rows // self.examples, *rest)
        blocks = x.reshape(*front, rows // self.examples, self.examples, *rest)
        return blocks.transpose(lead, lead + 1)

    def bring_sizes(self, sizes: list[int]) -> list[int]:
        """Returns the sizes that an operand of the tensor has along its axes after ``bring``, without the axis of examples."""
        if self.style == "axis":
            return sizes[: self.axis] + sizes[self.axis + 1 :]
        return sizes if self.style == "whole" else [1, *sizes[1:]]


WHOLE = Layout("whole", 1)


def candidates(shape: tuple[int, ...], examples: int) -> list[Layout]:
    """Returns the layouts that a tensor of this shape may have."""
    if examples == 1:
        return [WHOLE]
    found = [Layout("axis", examples, k) for k, size in enumerate(shape) if size == examples]
    if shape and shape[0] > examples and shape[0] % examples == 0:
        found += [Layout("major", examples), Layout("minor", examples)]
    return found


def keeps_apart(layout: Layout, u: Tensor, chosen: Tensor) -> bool:
    """Tells whether what flows back from ``chosen`` examples alone touches no other example's part of ``u``.

    u: [*shape]; chosen: bool [examples].
    """
    rows = layout.bring(u).reshape(layout.examples, -1)
    return not bool(torch.count_nonzero(rows[~chosen]))


def follows_scaling(layout: Layout, u: Tensor, reference: Tensor, scales: Tensor) -> bool:
    """Tells whether each example's part of ``u`` is that of ``reference`` times its own scale, and so free of the others'.

    u, reference: [*shape], what flows back from a cotangent with and without its examples scaled.
    scales: powers of two [examples]: linear operations scale by them without rounding (but for numbers near the end of the
    range, which are small beside their row).
    """
    rows, expected = (layout.bring(x).reshape(layout.examples, -1) for x in (u, reference))
    expected = expected * scales.unsqueeze(1)
    off = (rows - expected).abs().amax(1)
    return bool((off <= 16 * torch.finfo(u.dtype).eps * expected.abs().amax(1)).all())


def scalings(examples: int, dtype: torch.dtype) -> list[Tensor]:
    """Returns powers of two [examples] that tell any two examples apart, by the digits of their shuffled numbers as exponents.

    There is one for up to 64 examples, two for up to 4096 (16-bit floats have no room for as many exponents, and need more).
    """
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(3))
    base = min(max(2, examples), 8 if dtype == torch.float16 else 64)
    found = []
    while True:
        found.append(torch.exp2((order % base - base // 2).to(torch.float64)).to(dtype))
        order = order // base
        if not bool(order.any()):
            return found


def separating_sets(examples: int) -> list[Tensor]:
    """Returns sets of examples, bool [examples], such that for every ordered pair one set holds the first and not the second.

    So no example can feed another unseen. The sets are those examples whose (shuffled) number has a bit set, and their
    complements: 2 log2 N. The numbers are shuffled so that no other division of the rows looks like these sets.
    """
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(3))
    bits = range(max(1, (examples - 1).bit_length()))
    halves = [(order >> bit & 1).bool() for bit in bits]
    return [chosen for half in halves for chosen in (half, ~half)]
