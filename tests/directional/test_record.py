"""Readings kept in pages: none is lost or changed where a page is full, or where the number of scales changes."""

from __future__ import annotations

import torch

from metacurv.directional.record import DirectionalRecord, Records
from metacurv.estimators.line_reading import LineReading


def add(records: Records, step: int, scales: int) -> DirectionalRecord:
    """What is to come out again; numbers that differ between readings and between their parts."""
    loss, *rest = range(100 * step, 100 * step + 1 + 4 * scales)
    slope, curvature, measured, lr = (rest[i::4] for i in range(4))
    reading = LineReading(torch.tensor([loss, *slope, *curvature], dtype=torch.float64))
    lrs = tuple(torch.tensor(x, dtype=torch.float64) for x in (measured, lr))
    accepted = torch.tensor(float(step % 3 > 0), dtype=torch.float64)
    records.add(step, step + 7, reading, lrs, accepted)
    ratio = [m * d / n for m, d, n in zip(measured, curvature, slope, strict=True)]
    return DirectionalRecord(step, loss, slope, curvature, lr, ratio, step + 7, step % 3 > 0)


def test_readings_outlive_their_pages() -> None:
    records = Records()
    expected = [add(records, step, 1 if step < 300 else 2) for step in range(900)]
    assert records.all() == expected
    expected += [add(records, step, 2) for step in range(900, 1200)]
    assert records.all() == expected
