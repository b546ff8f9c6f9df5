"""One of two processes that train a model sharded by fully_shard, and the same without it, for test_sharded.py.

Called as: python -m tests.distributed.sharded RANK FOLDER
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.data import DataLoader

import metacurv
from metacurv import MetaCurvatureLR
from tests.helpers import as_one_of_two_ranks
from tests.optim.directional.directional_training import batch, data, network

BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
}


def whole(model: nn.Module) -> list[Tensor]:
    """Copies of the parameters, gathered."""
    return [
        p.full_tensor().detach() if hasattr(p, "full_tensor") else p.detach().clone()
        for p in model.parameters()
    ]


def sharded(model: nn.Sequential) -> nn.Sequential:
    """Both linear layers on their own, and the rest."""
    for layer in (model[0], model[-1]):
        fully_shard(layer)
    fully_shard(model)
    return model


def by_the_directional_rule(
    rank: int, base: str, *, shards: bool, race: Any = False
) -> dict[str, Any]:
    model = network(dtype=torch.float64)
    parallel: nn.Module = sharded(model) if shards else nn.parallel.DistributedDataParallel(model)
    opt = MetaCurvatureLR(
        BASES[base](model.parameters()),
        model=parallel,
        loss_fn=nn.functional.cross_entropy,
        probe=DataLoader(data(torch.float64), batch_size=16),
        seed=rank,
        horizon=60 if race is False else 400,
        race=race,
    )
    for step in range(60 if race is False else 140):
        train_step(parallel, opt, step, rank)
    with opt.averaged_parameters():
        average = whole(model)
    return {
        "model": whole(model),
        "average": average,
        "rates": [record.effective_lrs for record in opt.history],
        "events": [record.event for record in opt.history],
    }


def by_the_reciprocal_rule(rank: int, estimator: str, *, shards: bool) -> dict[str, Any]:
    model = network(dtype=torch.float64)
    parallel: nn.Module = sharded(model) if shards else nn.parallel.DistributedDataParallel(model)
    records: list[Any] = []
    opt = MetaCurvatureLR(
        BASES["AdamW"](model.parameters()),
        alpha=0.1,
        update_freq=3,
        estimator=estimator,
        model=parallel,
        on_update=records.append,
    )
    for step in range(20):
        train_step(parallel, opt, step, rank)
    return {"model": whole(model), "traces": [record.trace for record in records]}


def traces(rank: int, *, shards: bool) -> dict[str, Any]:
    """Over both ranks, of two and of three batches; and of this rank's own alone."""
    model = network(dtype=torch.float64)
    parallel: nn.Module = sharded(model) if shards else model
    loss = nn.functional.cross_entropy
    batches = [batch(10 * rank + i, torch.float64) for i in range(2 + rank)]
    found: dict[str, Any] = {}
    for method, kind in (
        ("auto", "hessian"),
        ("hutchinson", "hessian"),
        ("hutchinson", "ggn"),
        ("activation", "ggn"),
    ):
        for group in (None, False):
            e = metacurv.estimate_trace(
                parallel, loss, batches, kind=kind, method=method, n_samples=5, process_group=group
            )
            found[f"{method} {kind} {group}"] = [
                e.value,
                e.stderr,
                e.n_samples,
                e.per_parameter,
                e.per_layer_stderr,
            ]
    found["parameters"] = whole(model)
    train_step(parallel, torch.optim.SGD(model.parameters(), lr=0.1), 0, rank)  # goes on as before
    return found


def train_step(model: nn.Module, opt: Any, step: int, rank: int) -> None:
    """A step of the user's loop, on a batch of this rank's own."""
    x, y = batch(2 * step + rank, torch.float64)
    opt.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    if isinstance(opt, MetaCurvatureLR):
        opt.update_curvature(loss)
    loss.backward()
    opt.step()


def after_a_failed_first_step(rank: int) -> bool:
    """A loss without curvature is refused, and leaves the parameters as they were."""
    model = sharded(network(dtype=torch.float64))
    before = whole(model)
    opt = MetaCurvatureLR(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model=model,
        loss_fn=lambda z, y: z.sum(),
        probe=DataLoader(data(torch.float64), batch_size=16),
    )
    try:
        train_step(model, opt, 0, rank)
    except ValueError as error:
        same = all(torch.equal(a, b) for a, b in zip(before, whole(model), strict=True))
        return same and "loss_fn must be curved" in str(error)
    return False


def main(rank: int) -> dict[str, Any]:
    assert issubclass(type(sharded(network())), FSDPModule)
    found: dict[str, Any] = {"failed": after_a_failed_first_step(rank)}
    for base in BASES:
        for shards in (True, False):
            found[f"{base} {shards}"] = by_the_directional_rule(rank, base, shards=shards)
    for shards in (True, False):
        found[f"race {shards}"] = by_the_directional_rule(rank, "AdamW", shards=shards, race=3)
    found |= {f"traces {shards}": traces(rank, shards=shards) for shards in (True, False)}
    for estimator in ("hutchinson", "auto"):
        for shards in (True, False):
            key = f"{estimator} {shards}"
            found[key] = by_the_reciprocal_rule(rank, estimator, shards=shards)
    return found


if __name__ == "__main__":
    as_one_of_two_ranks(main)
