"""One of two processes that save and load by torch.distributed.checkpoint, for test_checkpoints.py.

Called as: python -m tests.distributed.checkpoints RANK FOLDER
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.utils.data import DataLoader

from metacurv import MetaCurvatureLR
from tests.distributed.sharded import sharded, train_step, whole
from tests.helpers import as_one_of_two_ranks
from tests.optim.directional.directional_training import data, network

WAYS = ("dcp", "in memory", "full")


def made(*, shards: bool, rule: str) -> tuple[nn.Module, Any]:
    model: nn.Module = network(dtype=torch.float64)
    parallel = sharded(model) if shards else nn.parallel.DistributedDataParallel(model)  # type: ignore[arg-type]
    base = torch.optim.AdamW(model.parameters(), lr=0.1)
    if rule == "reciprocal":
        return parallel, MetaCurvatureLR(base, alpha=0.1, update_freq=2, model=parallel)
    opt = MetaCurvatureLR(
        base,
        model=parallel,
        loss_fn=nn.functional.cross_entropy,
        probe=DataLoader(data(torch.float64), batch_size=16),
        horizon=100,
        race=False,
    )
    return parallel, opt


def resumed(rank: int, way: str, *, shards: bool, rule: str, folder: str) -> tuple[Any, Any]:
    """Parameters after 60 steps, without and with a checkpoint after 40."""
    model, opt = made(shards=shards, rule=rule)
    for step in range(40):
        train_step(model, opt, step, rank)
    options = StateDictOptions(full_state_dict=way == "full")
    of_model, of_opt = get_state_dict(model, opt, options=options)
    if way == "dcp":
        checkpoint.save({"model": of_model, "opt": of_opt}, checkpoint_id=folder)
    saved = _copied([of_model, of_opt])
    for step in range(40, 60):
        train_step(model, opt, step, rank)

    again, other = made(shards=shards, rule=rule)
    if way == "dcp":
        of_model, of_opt = get_state_dict(again, other)
        checkpoint.load({"model": of_model, "opt": of_opt}, checkpoint_id=folder)
    else:
        of_model, of_opt = saved
    set_state_dict(
        again, other, model_state_dict=of_model, optim_state_dict=of_opt, options=options
    )
    for step in range(40, 60):
        train_step(again, other, step, rank)
    return [whole(model), opt.effective_lrs], [whole(again), other.effective_lrs]


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    return [_copied(entry) for entry in value] if isinstance(value, list) else value


def main(rank: int) -> dict[str, Any]:
    return {
        f"{rule} {shards} {way}": resumed(
            rank, way, shards=shards, rule=rule, folder=f"{sys.argv[-1]}/{rule}{shards}"
        )
        for rule in ("directional", "reciprocal")
        for shards in ((False, True) if rule == "directional" else (False,))
        for way in WAYS
    }


if __name__ == "__main__":
    as_one_of_two_ranks(main)
