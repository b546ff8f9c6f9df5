"""What measures over ranks gives one answer on all of them, and no rank waits for the passes of another."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.measuring import WAYS
from tests.helpers import run_two_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder: Path = tmp_path_factory.mktemp("measuring")
    return run_two_ranks("tests.distributed.measuring", folder=folder)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_ranks_with_other_numbers_of_batches(ranks: tuple[Any, Any], way: str) -> None:
    """Batch norm has buffers, which DistributedDataParallel would send at each pass; hooks of shards would split the graph."""
    one, other = ranks
    like = "shards" if way in ("shards", "one group") else "bare"
    assert one[way]["value"] == other[way]["value"]
    assert one[way]["value"] == pytest.approx(one[like]["value"], rel=1e-12)
    assert one[way]["method"] == ("hutchinson" if like == "bare" else "exact")
    assert one[way]["names"]
    if way == "copies":
        assert other[way]["alone"] != other[way]["value"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["bare", "copies", "shards"])
@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_a_curvature_along_a_direction_is_the_mean(
    ranks: tuple[Any, Any], way: str, kind: str
) -> None:
    (here, alone), (there, other) = (rank[f"{way}, one number"][kind] for rank in ranks)
    assert here == there
    assert alone != other
    assert here == pytest.approx((alone + other) / 2, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["bare", "copies", "shards"])
def test_one_matrix_of_all_ranks(ranks: tuple[Any, Any], way: str) -> None:
    """The batches of both make one matrix, whose eigenvalues are those of all batches on one rank."""
    one, other = (rank[f"{way}, spectrum"] for rank in ranks)
    for what in ("values", "density", "diagonal"):
        assert one["together"][what] == other["together"][what]
    together, alone = one["together"], one["alone"]
    assert together["values"] == pytest.approx(alone["values"], rel=1e-6)
    assert together["density"] == pytest.approx(alone["density"], rel=1e-5, abs=1e-9)
    assert (together["n_samples"], alone["n_samples"]) == (15, 15)
    assert "not gram: the columns of several ranks are in no one place" in together["why"]
    if way == "shards":  # without batch norm: there the diagonal is exact
        assert together["ggn"] == pytest.approx(alone["ggn"], rel=1e-9)


@pytest.mark.slow
def test_a_trace_of_losses_is_the_mean(ranks: tuple[Any, Any]) -> None:
    """Each rank draws probes of its own, so that their errors are independent."""
    (here, alone), (there, other) = (rank["losses"] for rank in ranks)
    assert here == there
    assert here["n_samples"] == 8
    of_both = [(alone[key], other[key]) for key in ("value", "stderr")]
    assert here["value"] == pytest.approx(sum(of_both[0]) / 2, rel=1e-12)
    assert here["stderr"] == pytest.approx(math.hypot(*of_both[1]) / 2, rel=1e-12)
    for name, part in here["per_parameter"].items():
        mean = (alone["per_parameter"][name] + other["per_parameter"][name]) / 2
        assert part == pytest.approx(mean, rel=1e-9)


@pytest.mark.slow
def test_parameters_of_the_outermost_module_and_of_none_are_read(ranks: tuple[Any, Any]) -> None:
    for rank in ranks:
        shards, bare = rank["traces"]
        assert shards == pytest.approx(bare, rel=1e-12)


@pytest.mark.slow
def test_a_sharded_parameter_of_another_model_is_named(ranks: tuple[Any, Any]) -> None:
    for rank in ranks:
        assert rank["stranger"].startswith(
            "ValueError: model must be the one whose parameter '4' fully_shard has sharded, "
            "MetaCurvatureLR(..., model=model), got a FSDPSequential without it"
        )
