"""Ranks that disagree, and ranks one of which fails, all raise an error, and none waits for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers import run_two_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder: Path = tmp_path_factory.mktemp("disagreeing")
    return run_two_ranks("tests.distributed.disagreeing", folder=folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "step", "name", "numbers"),
    [
        ("lr", 0, "the learning rate of group 0", ("0.1", "0.2", "0.15")),
        ("alpha", 0, "alpha", ("0.1", "0.2", "0.15")),
        ("update_freq", 0, "update_freq", ("1", "2", "1.5")),
        ("first lr", 0, "the learning rate of group 0", ("1", "0.5", "0.75")),
        ("average", 0, "average", ("1", "0", "0.5")),
        ("race", 0, "race", ("0", "3", "1.5")),
        ("horizon", 0, "horizon", ("100", "4000", "2050")),
    ],
)
def test_what_differs_is_named(
    ranks: tuple[Any, Any], case: str, step: int, name: str, numbers: tuple[str, str, str]
) -> None:
    *here, mean = numbers
    for rank, number in zip(ranks, here, strict=True):
        at, error = rank[case]
        wanted = f"ValueError: {name} must be the same on all ranks, got {number} on this one and {mean} as the mean of all"
        assert error.startswith(wanted)
        assert at == step


@pytest.mark.slow
@pytest.mark.parametrize(("case", "least", "most"), [("early lr", 4, 6), ("late lr", 30, 40)])
def test_rates_that_part_later_are_found(
    ranks: tuple[Any, Any], case: str, least: int, most: int
) -> None:
    """At the next early reading, and at the next look of the guard."""
    for rank in ranks:
        at, error = rank[case]
        assert error.startswith("ValueError: the learning rate of group 0 must be the same")
        assert least <= at <= most


@pytest.mark.slow
@pytest.mark.parametrize("case", ["levels", "rates of their own"])
def test_what_may_differ(ranks: tuple[Any, Any], case: str) -> None:
    for rank in ranks:
        assert rank[case][1] == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "step", "error"),
    [
        ("probe 5", 0, "KeyError: 'the probe"),
        ("probe 9", 0, "KeyError: 'the probe"),
        ("probe 13", 4, "KeyError: 'the probe"),
        ("pass", 0, "KeyError: 'the model"),
        ("loss 3, shards", 0, "KeyError: 'the loss"),
        ("loss 12, shards", 0, "KeyError: 'the loss"),
        ("no graph, shards", 0, "ValueError: loss must carry a graph"),
    ],
)
def test_where_one_fails_all_do(ranks: tuple[Any, Any], case: str, step: int, error: str) -> None:
    whole, failing = (rank[case] for rank in ranks)
    assert failing[1].startswith(error)
    assert whole[1].startswith("RuntimeError: measuring failed on 1 of 2 ranks")
    assert whole[0] == failing[0] == step


@pytest.mark.slow
def test_joined_ranks_are_refused_also_where_the_wrapper_is_inside(ranks: tuple[Any, Any]) -> None:
    for rank in ranks:
        assert rank["join"][1].startswith("RuntimeError: process_group must be False within")
