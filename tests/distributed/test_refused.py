"""Set-ups that cannot be served are refused by their names, before anything is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import metacurv
from metacurv import MetaCurvatureLR
from tests.helpers import run_two_ranks
from tests.optim.directional.directional_training import batch, directional, network


@pytest.mark.slow
def test_what_is_not_served_is_named(tmp_path: Path) -> None:
    for rank in run_two_ranks("tests.distributed.refused", folder=tmp_path):
        for name in ("directional", "reciprocal", "estimate_trace"):
            assert rank[f"FSDP1 {name}"].startswith(
                "TypeError: model must be sharded by torch.distributed.fsdp.fully_shard (FSDP2)"
            )
        assert rank["join"].startswith(
            "RuntimeError: process_group must be False within DistributedDataParallel.join()"
        )
        assert rank["join alone"] == ""


def test_parameters_of_zero_3_are_named() -> None:
    model = network()
    model[0].weight.ds_id = 0  # type: ignore[assignment]
    with pytest.raises(TypeError, match="got those of DeepSpeed's ZeRO stage 3"):
        MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), alpha=0.1)


@pytest.mark.parametrize("rule", ["directional", "reciprocal"])
def test_a_step_within_the_backward_pass_is_named(rule: str) -> None:
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    opt: Any = (
        directional(base, model) if rule == "directional" else MetaCurvatureLR(base, alpha=0.1)
    )
    model[0].weight.register_post_accumulate_grad_hook(lambda _: opt.step())
    before = [p.detach().clone() for p in model.parameters()]
    x, y = batch(0)
    with pytest.raises(RuntimeError, match="must not be called within a backward pass"):
        nn.functional.cross_entropy(model(x), y).backward()
    for a, b in zip(before, model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_group_that_is_no_group_is_named() -> None:
    model = network()
    x, y = batch(0)
    with pytest.raises(TypeError, match="process_group must be a torch"):
        metacurv.estimate_trace(model, nn.functional.cross_entropy, x, y, process_group=2)
