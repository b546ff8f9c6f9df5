"""The events of a training: they are kept, and each is told as it happens."""

from __future__ import annotations

from collections.abc import Callable

from metacurv.optim.directional.record import DirectionalRecord


class History:
    """Keeps a record of every event.

    Attributes:
        records: all of them, in the order of time.
        on_update: is called with each by ``report``, or None.
    """

    def __init__(self, on_update: Callable[[DirectionalRecord], None] | None) -> None:
        self.on_update = on_update
        self.clear()

    def clear(self) -> None:
        """Forgets all events."""
        self.records: list[DirectionalRecord] = []
        self._untold: list[DirectionalRecord] = []

    def add(self, record: DirectionalRecord) -> None:
        """Keeps a record, to be told of by ``report``."""
        self.records.append(record)
        self._untold.append(record)

    def report(self) -> None:
        """Tells of the events that are new. Where ``on_update`` raises, the others are told of next time."""
        while self._untold:
            record = self._untold.pop(0)
            if self.on_update is not None:
                self.on_update(record)
