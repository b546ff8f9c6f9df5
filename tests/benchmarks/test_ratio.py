"""benchmarks/ratio.py: the paired ratio and its interval."""

from __future__ import annotations

import gc
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ratio(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import ratio

    return ratio


def test_interval_of_the_median(ratio: ModuleType) -> None:
    """For 100 values the 95 % interval has ranks 41 to 60 (from 1), by the table of the binomial distribution."""
    assert ratio.median_interval([float(i) for i in range(100, 0, -1)]) == (41.0, 60.0)
    assert ratio.median_interval([3.0]) == (3.0, 3.0)


def test_work_that_is_thrice_as_much(ratio: ModuleType) -> None:
    def work(n: int) -> object:
        return sum(range(n))

    paired = ratio.compare(lambda: work(20_000), lambda: work(60_000), seconds=0.2)
    assert 2 < paired.speedup < 4.5
    assert paired.low <= paired.speedup <= paired.high
    assert paired.pairs >= ratio.MIN_PAIRS
    assert 1 < paired.other_s / paired.ours_s < 9
    assert set(paired.as_dict()) >= {"speedup", "low", "high", "wall_speedup"}


def test_garbage_collection_is_back_after_an_error(ratio: ModuleType) -> None:
    calls = 0

    def fails() -> None:
        nonlocal calls
        calls += 1
        if calls > 10:
            raise RuntimeError("enough")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="enough"):
        ratio.compare(fails, lambda: None, seconds=0.1)
    assert gc.isenabled()
