"""One of two processes that disagree, or one of which fails, for test_disagreeing.py.

Called as: python -m tests.distributed.disagreeing RANK FOLDER
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from metacurv import MetaCurvatureLR
from tests.helpers import as_one_of_two_ranks
from tests.optim.directional.directional_training import batch, directional, network

WAIT = timedelta(seconds=20)


def told(call: Callable[[int], Any], steps: int = 1) -> tuple[int, str]:
    """The first step that raises an error, and the error."""
    for step in range(steps):
        try:
            call(step)
        except (KeyError, RuntimeError, ValueError) as error:
            return step, f"{type(error).__name__}: {error}"
    return steps, ""


def stepped(model: nn.Module, opt: MetaCurvatureLR, step: int) -> None:
    """A step on the same batch on all ranks, whose gradients need no averaging."""
    x, y = batch(step, torch.float64)
    opt.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    opt.update_curvature(loss)
    loss.backward()
    opt.step()


def trained(
    change: Callable[[MetaCurvatureLR, int], None] = lambda opt, step: None, **options: Any
) -> tuple[int, str]:
    """By the directional rule, for a whole horizon of 100 steps unless ``options`` say otherwise."""
    model = options.pop("model", None) or network(dtype=torch.float64)
    settings: dict[str, Any] = {"horizon": 100, "race": False, "process_group": group(), **options}
    opt = directional(torch.optim.Adam(model.parameters(), lr=0.1), model, **settings)

    def step(number: int) -> None:
        change(opt, number)
        stepped(model, opt, number)

    return told(step, 100)


def group() -> Any:
    """A group of both ranks that gives up soon."""
    return torch.distributed.new_group(timeout=WAIT)


def other_lr_from(first: int, rank: int) -> Callable[[MetaCurvatureLR, int], None]:
    def change(opt: MetaCurvatureLR, step: int) -> None:
        if step == first and rank == 1:
            opt.param_groups[0]["lr"] *= 0.5

    return change


def by_the_reciprocal_rule(**options: Any) -> tuple[int, str]:
    model = network(dtype=torch.float64)
    base = torch.optim.SGD(model.parameters(), lr=options.pop("lr", 0.1))
    settings = {"update_freq": 1, "process_group": group(), **options}
    opt = MetaCurvatureLR(base, **settings)
    return told(lambda step: stepped(model, opt, step), 3)


def probe_that_fails(rank: int, draw: int) -> Callable[[], Any]:
    """On rank 1 the draw of this number, from 0, raises an error."""
    drawn = iter(range(1000))

    def probe() -> Any:
        number = next(drawn)
        if rank == 1 and number == draw:
            raise KeyError("the probe of rank 1")
        return batch(number, torch.float64)

    return probe


class FailsOnce(nn.Module):
    """On rank 1 the pass of this number, from 0, raises an error."""

    def __init__(self, rank: int, number: int) -> None:
        super().__init__()
        self.network = network(dtype=torch.float64)
        self.left = number if rank == 1 else -1

    def forward(self, x: Tensor) -> Any:
        self.left -= 1
        if self.left == -1:
            raise KeyError("the model of rank 1")
        return self.network(x)


def loss_that_fails(rank: int, call: int) -> Callable[[Any, Any], Tensor]:
    """On rank 1 the call of this number, from 0, raises an error."""
    calls = iter(range(1000))

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        if next(calls) == call and rank == 1:
            raise KeyError("the loss of rank 1")
        return nn.functional.cross_entropy(output, target)

    return loss_fn


def sharded() -> nn.Module:
    model = network(dtype=torch.float64)
    mesh = DeviceMesh.from_group(group(), "cpu")
    for layer in (model[0], model[-1]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def a_loss_without_graph(rank: int) -> tuple[int, str]:
    """Both ranks have sharded parameters, and rank 1 a loss that cannot be measured."""
    model = sharded()
    opt = MetaCurvatureLR(
        torch.optim.SGD(model.parameters(), lr=0.1), model=model, process_group=group()
    )

    def update(step: int) -> None:
        x, y = batch(step, torch.float64)
        loss = nn.functional.cross_entropy(model(x), y)
        opt.update_curvature(loss.detach() if rank == 1 else loss)

    return told(update)


def joined() -> tuple[int, str]:
    """The wrapper is inside the model that the rule was given."""
    inner = nn.parallel.DistributedDataParallel(network(dtype=torch.float64), process_group=group())

    def first_step(opt: MetaCurvatureLR, step: int) -> None:
        with inner.join():
            stepped(outer, opt, step)

    outer = nn.Sequential(inner)
    return trained(first_step, model=outer, process_group=None)


def main(rank: int) -> dict[str, tuple[int, str]]:
    both = torch.distributed.group.WORLD
    found = {
        "lr": by_the_reciprocal_rule(lr=(0.1, 0.2)[rank]),
        "alpha": by_the_reciprocal_rule(alpha=(0.1, 0.2)[rank]),
        "update_freq": by_the_reciprocal_rule(update_freq=(1, 2)[rank]),
        "rates of their own": by_the_reciprocal_rule(lr=(0.1, 0.2)[rank], process_group=False),
        "early lr": trained(other_lr_from(4, rank)),
        "late lr": trained(other_lr_from(30, rank)),
        "average": trained(average=(True, False)[rank]),
        "race": trained(race=(False, 3)[rank]),
        "first lr": trained(other_lr_from(0, rank)),
        "levels": by_level(rank),
    }
    # Eight draws judge, four find the first rate, and every second early step takes one.
    for draw in (5, 9, 13):
        found[f"probe {draw}"] = trained(probe=probe_that_fails(rank, draw))
    # The loop takes one pass, eight judge, and the next tells the dtypes.
    found["pass"] = trained(model=FailsOnce(rank, 9))
    # Eight losses judge, four find the first rate, and the next four look whether it raises the loss.
    for call in (3, 12):
        found[f"loss {call}, shards"] = trained(
            model=sharded(), loss_fn=loss_that_fails(rank, call)
        )
    found["no graph, shards"] = a_loss_without_graph(rank)
    found["join"] = joined()
    found["horizon"] = trained(horizon=(100, 4000)[rank], process_group=both)
    return found


def by_level(rank: int) -> tuple[int, str]:
    """Only the ratios of learning rates count under the directional rule."""
    model = network(dtype=torch.float64)
    base = torch.optim.Adam(model.parameters(), lr=(0.1, 0.2)[rank])
    opt = directional(base, model, horizon=100, race=False, process_group=group())
    return told(lambda step: stepped(model, opt, step), 100)


if __name__ == "__main__":
    as_one_of_two_ranks(main)
