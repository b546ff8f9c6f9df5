"""One of two processes of a DDP training, for test_ddp.py.

python -m tests.optim.drop_in.reciprocal_ddp ESTIMATOR RANK FOLDER
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

import metacurv
from metacurv.estimators.probes.hutchinson import trace_of_loss
from metacurv.estimators.problem.parameters import number_parameters
from tests.helpers import as_one_of_two_ranks


def main(rank: int) -> dict[str, Any]:
    estimator = sys.argv[1]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    numbered = number_parameters(list(model.named_parameters()))
    parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    records: list[metacurv.UpdateRecord] = []
    opt = metacurv.MetaCurvatureLR(
        torch.optim.SGD(model.parameters(), lr=0.5),
        alpha=0.5,
        update_freq=2,
        model=parallel,
        estimator=estimator,
        on_update=records.append,
    )
    torch.manual_seed(1 + rank)
    local = []  # what hutchinson reads on this rank alone
    for step in range(6):
        x, y = torch.randn(8, 6).double(), torch.randint(0, 3, (8,))
        opt.zero_grad()
        if step % 2 == 0:
            alone = nn.functional.cross_entropy(model(x), y)
            reading = trace_of_loss(
                alone,
                numbered,
                seed=0,
                first_probe=step // 2 * 2 + rank,
                n_samples=1,
                backend="auto",
            )
            local.append(reading.trace.item())
        loss = nn.functional.cross_entropy(parallel(x), y)
        opt.update_curvature(loss)
        loss.backward()
        opt.step()
    return {"records": [vars(r) for r in records], "local": local, "model": model.state_dict()}


if __name__ == "__main__":
    as_one_of_two_ranks(main)
