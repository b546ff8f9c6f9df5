"""The rates that rules have found, and how far apart they lie between seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .summary import Records


@dataclass(frozen=True)
class Found:
    """The rates of one method on one task.

    Attributes:
        mean: their geometric mean.
        spread: the factor that one standard deviation of log rate is; 1 where all seeds agree, nan for one seed.
        n: the number of seeds.
    """

    mean: float
    spread: float
    n: int


def found(records: Records) -> dict[str, Found]:
    """Returns method -> its rates, for methods whose records hold one each."""
    return {
        method: summarised({seed: run["rate"] for seed, run in runs.items()})
        for method, runs in records.items()
        if runs and all(run.get("rate") for run in runs.values())
    }


def summarised(rates: Mapping[int, float]) -> Found:
    """Summarises the rates of the seeds, which are above 0."""
    logs = np.log(list(rates.values()))
    spread = math.exp(logs.std(ddof=1)) if len(logs) > 1 else math.nan
    return Found(math.exp(logs.mean()), spread, len(logs))
