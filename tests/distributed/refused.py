"""One of two processes that try what cannot be served, for test_refused.py.

Called as: python -m tests.distributed.refused RANK FOLDER
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import metacurv
from metacurv import MetaCurvatureLR
from tests.helpers import as_one_of_two_ranks
from tests.optim.directional.directional_training import batch, directional, network


def raised(call: Callable[[], Any]) -> str:
    try:
        call()
    except (RuntimeError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def joined(rank: int, **options: Any) -> str:
    """Rank 1 has one batch more."""
    model = network(dtype=torch.float64)
    parallel = nn.parallel.DistributedDataParallel(model)
    opt = directional(
        torch.optim.Adam(model.parameters()), parallel, horizon=60, race=False, **options
    )

    def loop() -> None:
        with parallel.join():
            for step in range(3 + rank):
                x, y = batch(step, torch.float64)
                opt.zero_grad()
                nn.functional.cross_entropy(parallel(x), y).backward()
                opt.step()

    return raised(loop)


def main(rank: int) -> dict[str, str]:
    model = FullyShardedDataParallel(network(), use_orig_params=True, device_id=torch.device("cpu"))
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = batch(0)
    loss = nn.functional.cross_entropy

    def reciprocal() -> None:
        MetaCurvatureLR(base, alpha=0.1, model=model).update_curvature(loss(model(x), y))

    return {
        "FSDP1 directional": raised(lambda: directional(base, model)),
        "FSDP1 reciprocal": raised(reciprocal),
        "FSDP1 estimate_trace": raised(lambda: metacurv.estimate_trace(model, loss, x, y)),
        "join alone": joined(rank, process_group=False),
        "join": joined(rank),
    }


if __name__ == "__main__":
    as_one_of_two_ranks(main)
