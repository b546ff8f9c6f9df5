"""The reciprocal rule on a DDP model: ranks with batches of their own come to one rate, from the mean of their traces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.drop_in.helpers import assert_same


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["hutchinson", "activation", "exact"])
def test_ranks_of_a_ddp_model_agree(estimator: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.drop_in.ddp_training", estimator]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert_same(one["model"], other["model"])
    assert len(one["records"]) == 3
    for a, b in zip(one["records"], other["records"], strict=True):
        assert a["trace"] == b["trace"]
        assert a["effective_lrs"] == b["effective_lrs"]
    if estimator == "hutchinson":
        for record, *local in zip(one["records"], one["local"], other["local"], strict=True):
            assert local[0] != pytest.approx(local[1], rel=1e-3)
            assert record["trace"] == pytest.approx(sum(local) / 2, rel=1e-9)
