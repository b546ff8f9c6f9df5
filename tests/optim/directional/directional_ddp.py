"""One of two processes of a DDP training, for test_ranks.py.

python -m tests.optim.directional.directional_ddp RANK FOLDER
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.helpers import as_one_of_two_ranks
from tests.optim.directional.directional_training import batch, data, directional, network


def trained(rank: int, race: int) -> dict[str, Any]:
    model = network(norm=True, dtype=torch.float64)
    parallel = nn.parallel.DistributedDataParallel(model)
    opt = directional(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        parallel,
        probe=DataLoader(data(torch.float64), batch_size=(16, 40)[rank]),
        seed=rank,
        horizon=200,
        race=race,
    )
    for step in range(200):
        x, y = batch(2 * step + rank, torch.float64)
        opt.zero_grad()
        nn.functional.cross_entropy(parallel(x), y).backward()
        opt.step()
    history = [vars(record) for record in opt.history]
    return {"model": dict(model.named_parameters()), "history": history}


if __name__ == "__main__":
    as_one_of_two_ranks(lambda rank: {race: trained(rank, race) for race in (0, 3)})
