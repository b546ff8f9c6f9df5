"""The reciprocal rule on a DDP model: ranks with batches of their own come to one rate, from the mean of their traces."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import assert_same, run_two_ranks


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["hutchinson", "activation", "exact"])
def test_ranks_of_a_ddp_model_agree(estimator: str, tmp_path: Path) -> None:
    one, other = run_two_ranks("tests.optim.drop_in.reciprocal_ddp", estimator, folder=tmp_path)
    assert_same(one["model"], other["model"])
    assert len(one["records"]) == 3
    for a, b in zip(one["records"], other["records"], strict=True):
        assert a["trace"] == b["trace"]
        assert a["effective_lrs"] == b["effective_lrs"]
    if estimator == "hutchinson":
        for record, *local in zip(one["records"], one["local"], other["local"], strict=True):
            assert local[0] != pytest.approx(local[1], rel=1e-3)
            assert record["trace"] == pytest.approx(sum(local) / 2, rel=1e-9)
