"""The record of one reading of the directional rule, for ``history`` and ``on_update``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metacurv.estimators.line_reading import LineReading


@dataclass(frozen=True)
class DirectionalRecord:
    """One reading: what the directional rule measured at one step, and the learning rate that came of it.

    Each list has one entry per scale. A scale is a set of parameter groups that share a rate: there is one, or with
    ``per_group=True`` one for each parameter group.

    Attributes:
        step: optimizer steps taken before the one that was measured.
        probe_loss: loss of the probe batch before the step.
        slope: n = g . u, with g the gradient on the probe batch and u the base optimizer's step at a rate of 1; in units of the
            loss.
        curvature: d = u . G u, with G the Gauss-Newton matrix; in units of the loss.
        lr: the rate from the next step on, without the factors of a scheduler and of the horizon.
        ratio: lr d / n of this reading alone, at the rate that was measured. On a quadratic the best rate has ratio 1, and
            beyond ratio 2 the step makes no progress.
        interval: steps to the next reading.
        accepted: False where a number was not finite; slope and curvature then changed nothing.
    """

    step: int
    probe_loss: float
    slope: list[float]
    curvature: list[float]
    lr: list[float]
    ratio: list[float]
    interval: int
    accepted: bool


_PAGE = 256  # readings a page


class Records:
    """Keeps the readings so far.

    Their numbers stay on the device until somebody asks, in pages, so that a reading rarely needs new memory there.
    """

    def __init__(self) -> None:
        self._read: list[DirectionalRecord] = []
        self._unread: list[tuple[int, int, Tensor]] = []
        self._page: Tensor | None = None
        self._used = 0  # rows of the page

    def add(
        self,
        step: int,
        interval: int,
        reading: LineReading,
        lrs: tuple[Tensor, Tensor],
        accepted: Tensor,
    ) -> None:
        """Adds one reading, with the rates before and after it, and ``accepted``, 1 where it was finite and else 0."""
        parts = (reading.numbers, *lrs, accepted.reshape(1))
        row = self._row(reading.numbers, sum(map(len, parts)))
        torch.cat(parts, out=row)
        self._unread.append((step, interval, row))

    def _row(self, like: Tensor, width: int) -> Tensor:
        page = self._page
        if page is None or self._used == _PAGE or page.shape[1] != width:
            page = self._page = like.new_empty(_PAGE, width)
            self._used = 0
        self._used += 1
        return page[self._used - 1]

    def all(self) -> list[DirectionalRecord]:
        """Returns all readings as numbers; on CUDA this waits for the device."""
        for step, interval, numbers in self._unread:
            loss, *middle, accepted = numbers.tolist()
            scales = len(middle) // 4
            slope, curvature, measured, lr = (
                middle[i * scales : (i + 1) * scales] for i in range(4)
            )
            ratio = [
                rate * d / n if n else math.nan
                for rate, d, n in zip(measured, curvature, slope, strict=True)
            ]
            self._read.append(
                DirectionalRecord(step, loss, slope, curvature, lr, ratio, interval, bool(accepted))
            )
        self._unread.clear()
        return list(self._read)
