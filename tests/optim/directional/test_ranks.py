"""Several processes that train copies of one model come to one rate and one model, with a race and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import assert_same, run_two_ranks


@pytest.mark.slow
def test_ranks_of_a_ddp_model_agree(tmp_path: Path) -> None:
    """Two processes with batches and probes of their own, the probes of 16 and of 40 examples."""
    one, other = run_two_ranks("tests.optim.directional.directional_ddp", folder=tmp_path)
    assert str(one) == str(other)  # nan is not equal to itself
    for race, of_one in one.items():
        assert_same(of_one["model"], other[race]["model"])
        events = [record["event"] for record in of_one["history"]]
        assert events.count("reading") == 10
        assert events.count("settling") >= 5
        assert events.count("race") == (race == 3)
    raced = next(record for record in one[3]["history"] if record["event"] == "race")
    assert len(raced["candidates"]) >= 2


@pytest.mark.slow
def test_ranks_agree_whatever_their_model_is(tmp_path: Path) -> None:
    """Raw, wrapped after the optimizer, inside a module, compiled, composable: one rate and one model."""
    one, other = run_two_ranks("tests.optim.directional.loose_ranks", folder=tmp_path)
    for way in ("raw", "inside", "later", "no_sync", "compiled", "replicate"):
        for of_one, of_other in zip(one[way], other[way], strict=True):
            assert of_one["rate"] == of_other["rate"], way
            assert_same(of_one["model"], of_other["model"])
    assert one["alone"] != other["alone"]
    told, of_other = one["failures"], other["failures"]
    assert told["one fails"].startswith("RuntimeError: measuring failed on 1 of 2 ranks")
    assert of_other["one fails"].startswith("KeyError")
    assert told["reciprocal 0"].startswith("RuntimeError: measuring failed on 1 of 2 ranks")
    assert of_other["reciprocal 0"].startswith("ValueError: loss must carry a graph")
    for ranks in (told, of_other):
        assert ranks["other rates 0"].startswith("ValueError: alpha must be the same on all ranks")
