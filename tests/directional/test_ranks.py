"""Several processes that train copies of one model come to one rate and one model, through a race."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.drop_in.helpers import assert_same
from tests.helpers import run_two_ranks


@pytest.mark.slow
def test_ranks_of_a_ddp_model_agree(tmp_path: Path) -> None:
    """Two processes with batches and probes of their own."""
    one, other = run_two_ranks("tests.directional.ddp_training", folder=tmp_path)
    assert_same(one, other)
    events = [record["event"] for record in one["history"]]
    assert events.count("reading") == 10
    assert events.count("race") == 1
    assert len(one["history"][events.index("race")]["candidates"]) >= 2
    assert events[-1] == "guard"
