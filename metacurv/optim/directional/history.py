"""The events of a training: they are kept, and each is told as it happens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from metacurv.optim.directional.line_curvature import LineReading
from metacurv.optim.directional.record import DirectionalRecord


class History:
    """Keeps a record of every event.

    Attributes:
        records: all of them, in the order of time.
        on_update: is called with each by ``report``, or None.
    """

    def __init__(self, on_update: Callable[[DirectionalRecord], None] | None) -> None:
        self.records: list[DirectionalRecord] = []
        self.on_update = on_update
        self._untold: list[DirectionalRecord] = []

    def clear(self) -> None:
        """Forgets all events."""
        self.records.clear()
        self._untold.clear()

    def report(self) -> None:
        """Tells of the events that are new. Where ``on_update`` raises, the others are told of next time."""
        while self._untold:
            record = self._untold.pop(0)
            if self.on_update is not None:
                self.on_update(record)

    def add_reading(
        self,
        step: int,
        reading: LineReading,
        lr: Sequence[float],
        effective_lrs: list[float],
        measured_at: Sequence[float],
        *,
        accepted: bool,
    ) -> None:
        """Adds a reading.

        Args:
            step: the step that was measured.
            reading: what was measured.
            lr: the rate of every scale from the next step on.
            effective_lrs: the learning rate of every group at the next step.
            measured_at: the rates of the scales at the step that was measured.
            accepted: False where a number of the reading was not finite.
        """
        slope, curvature = reading.slope.tolist(), reading.curvature.tolist()
        ratio = [
            rate * d / n if n else math.nan
            for rate, d, n in zip(measured_at, curvature, slope, strict=True)
        ]
        loss = float(reading.loss)
        self._add(
            DirectionalRecord(
                step,
                "reading",
                loss,
                list(lr),
                effective_lrs,
                slope,
                curvature,
                ratio,
                [],
                accepted,
            )
        )

    def add(
        self,
        step: int,
        event: Literal["race", "settling", "guard", "went back"],
        loss: float,
        lr: Sequence[float],
        effective_lrs: list[float],
        candidates: Sequence[tuple[float, float]] = (),
        noise: float = math.nan,
    ) -> None:
        """Adds another event after ``step`` steps; see ``DirectionalRecord``."""
        self._add(
            DirectionalRecord(
                step,
                event,
                loss,
                list(lr),
                effective_lrs,
                [],
                [],
                [],
                list(candidates),
                True,
                noise,
            )
        )

    def _add(self, record: DirectionalRecord) -> None:
        self.records.append(record)
        self._untold.append(record)
