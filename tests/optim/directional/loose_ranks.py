"""One of two processes that wrap their model in several ways, for test_ranks.py.

Called as: python -m tests.optim.directional.loose_ranks RANK FOLDER
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from metacurv import MetaCurvatureLR
from tests.helpers import as_one_of_two_ranks
from tests.optim.directional.directional_training import batch, data, directional, network


def averaged(model: nn.Module) -> None:
    """What a user's own loop, or a framework that is not known here, does with gradients."""
    for p in model.parameters():
        torch.distributed.all_reduce(p.grad)
        p.grad.div_(2)  # type: ignore[union-attr]


def wrapped(model: nn.Module, way: str) -> nn.Module:
    if way == "raw":
        return model
    if way == "inside":
        return nn.Sequential(nn.parallel.DistributedDataParallel(model))
    if way in ("later", "no_sync"):
        return nn.parallel.DistributedDataParallel(model)
    if way == "compiled":
        return torch.compile(nn.parallel.DistributedDataParallel(model), backend="eager")  # type: ignore[return-value]
    from torch.distributed._composable.replicate import replicate

    made: nn.Module = replicate(model)
    return made


def by_the_directional_rule(rank: int, way: str) -> dict[str, Any]:
    model = network(dtype=torch.float64)
    opt = directional(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        model,
        probe=DataLoader(data(torch.float64), batch_size=16),
        seed=rank,
        horizon=60,
        race=False,
    )
    return trained(model, opt, rank, way, 60)


def by_the_reciprocal_rule(rank: int, way: str) -> dict[str, Any]:
    model = network(dtype=torch.float64)
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), alpha=0.1, update_freq=2)
    return trained(model, opt, rank, way, 12)


def trained(model: nn.Module, opt: Any, rank: int, way: str, steps: int) -> dict[str, Any]:
    parallel: Any = wrapped(model, way)
    for step in range(steps):
        x, y = batch(2 * step + rank, torch.float64)
        opt.zero_grad()
        if way == "no_sync":  # two batches a step, of which the second sends the gradients
            with parallel.no_sync():
                nn.functional.cross_entropy(parallel(x.flip(0)), y.flip(0)).backward()
        loss = nn.functional.cross_entropy(parallel(x), y)
        opt.update_curvature(loss)
        loss.backward()
        if way == "raw":
            averaged(model)
        opt.step()
    return {"model": [p.detach() for p in model.parameters()], "rate": opt.effective_lrs}


def alone(rank: int) -> list[float]:
    """With process_group=False each rank holds a rate of its own."""
    model = network(dtype=torch.float64)
    opt = MetaCurvatureLR(
        torch.optim.SGD(model.parameters(), lr=0.1), alpha=0.1, process_group=False
    )
    opt.update_curvature(
        nn.functional.cross_entropy(model(batch(rank, torch.float64)[0]), batch(rank)[1])
    )
    return opt.effective_lrs


def failures(rank: int) -> dict[str, str]:
    """What each rank is told where one cannot measure, and where their rates differ."""
    told = {}
    model = network(dtype=torch.float64)

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        if rank == 1:
            raise KeyError("of rank 1")
        return nn.functional.cross_entropy(output, target)

    opt = directional(torch.optim.Adam(model.parameters()), model, loss_fn=loss_fn, horizon=60)
    x, y = batch(0, torch.float64)
    nn.functional.cross_entropy(model(x), y).backward()
    told["one fails"] = raised(opt.step)
    for name, options in (
        ("reciprocal", {"alpha": 0.1}),
        ("other rates", {"alpha": (0.1, 0.5)[rank]}),
    ):
        opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), update_freq=1, **options)
        for step in range(2):
            loss = nn.functional.cross_entropy(model(x), y)
            if name == "reciprocal" and rank == 1:
                loss = loss.detach()
            told[f"{name} {step}"] = raised(lambda opt=opt, loss=loss: opt.update_curvature(loss))
            opt.step()
    return told


def raised(call: Any) -> str:
    try:
        call()
    except (KeyError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {"alone": alone(rank), "failures": failures(rank)}
    for way in ("raw", "inside", "later", "no_sync", "compiled", "replicate"):
        found[way] = by_the_directional_rule(rank, way), by_the_reciprocal_rule(rank, way)
    return found


if __name__ == "__main__":
    as_one_of_two_ranks(main)
