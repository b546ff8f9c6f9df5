"""Models sharded by fully_shard train as they do without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.drop_in.helpers import assert_same
from tests.helpers import run_two_ranks


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
def test_a_failed_first_step_leaves_the_parameters(ranks: tuple[Any, Any]) -> None:
    assert [rank["failed"] for rank in ranks] == [True, True]
