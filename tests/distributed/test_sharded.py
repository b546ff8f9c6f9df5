"""Models sharded by fully_shard train as they do without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import assert_same, run_two_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder: Path = tmp_path_factory.mktemp("sharded")
    return run_two_ranks("tests.distributed.sharded", folder=folder)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["SGD", "AdamW", "race"])
def test_the_directional_rule_finds_the_same(ranks: tuple[Any, Any], case: str) -> None:
    one, other = ranks
    of_shards, of_copies = one[f"{case} True"], one[f"{case} False"]
    assert_same(of_shards, other[f"{case} True"])
    assert of_shards["events"] == of_copies["events"]
    assert ("race" in of_shards["events"]) == (case == "race")
    torch.testing.assert_close(of_shards["rates"], of_copies["rates"], rtol=1e-6, atol=0.0)
    for key in ("model", "average"):
        torch.testing.assert_close(of_shards[key], of_copies[key], rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["hutchinson", "auto"])
def test_the_reciprocal_rule_reads_the_same(ranks: tuple[Any, Any], estimator: str) -> None:
    one, other = ranks
    # Shards split the graph, so "auto" takes hutchinson there.
    of_shards, of_copies = one[f"{estimator} True"], one["hutchinson False"]
    assert_same(of_shards, other[f"{estimator} True"])
    assert len(of_shards["traces"]) == 7
    torch.testing.assert_close(of_shards, of_copies, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_a_trace_is_one_over_ranks_and_the_same_with_shards(ranks: tuple[Any, Any]) -> None:
    """Probes to the bit, values to rounding; and of five batches what one process finds of them."""
    one, other = ranks
    for case, found in one["traces True"].items():
        torch.testing.assert_close(found, one["traces False"][case], rtol=1e-12, atol=1e-15)
        if case.endswith("None"):
            assert found == other["traces True"][case]
        elif case.endswith("False"):
            assert found[0] != other["traces True"][case][0]
    alone = [rank["traces False"]["auto hessian False"] for rank in ranks]
    together = one["traces False"]["auto hessian None"]
    assert together[0] == pytest.approx((2 * alone[0][0] + 3 * alone[1][0]) / 5, rel=1e-12)
    assert together[2] == alone[0][2] + alone[1][2]
    sampled = [rank["traces False"]["hutchinson hessian None"] for rank in ranks]
    assert sampled[0][2] == 25
    assert sampled[0][1] > 0


@pytest.mark.slow
def test_a_failed_first_step_leaves_the_parameters(ranks: tuple[Any, Any]) -> None:
    assert [rank["failed"] for rank in ranks] == [True, True]
