"""Wrote the files beside it: python made_by.py FOLDER, with the tree of commit 4d5cc84 on PYTHONPATH."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metacurv import MetaCurvatureLR
from tests.optim.directional.directional_training import batch, loader, network

DIRECTIONAL: dict[str, dict[str, Any]] = {
    "horizon": {"horizon": 60},
    "horizon-average": {"horizon": 60, "average": True},
    "average": {"average": True},
    "following": {},
}


def wrapped(case: str, model: nn.Module) -> MetaCurvatureLR:
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    if case == "reciprocal":
        return MetaCurvatureLR(adam, alpha=0.1, update_freq=3, smoothing=0.5)
    return MetaCurvatureLR(
        adam,
        rule="directional",
        model=model,
        loss_fn=nn.functional.cross_entropy,
        probe=loader(torch.float64),
        **DIRECTIONAL[case],
    )


def train_between(model: nn.Module, opt: MetaCurvatureLR, start: int, stop: int) -> None:
    for step in range(start, stop):
        x, y = batch(step, torch.float64)
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        opt.update_curvature(loss)
        loss.backward()
        opt.step()


def main(folder: Path) -> None:
    for case in ("reciprocal", *DIRECTIONAL):
        model = network(dtype=torch.float64)
        opt = wrapped(case, model)
        train_between(model, opt, 0, 30)
        written = io.BytesIO()  # a state dict refers to tensors that the training goes on with
        torch.save({"model": model.state_dict(), "optimizer": opt.state_dict()}, written)
        train_between(model, opt, 30, 60)
        written.seek(0)
        checkpoint = torch.load(written, weights_only=True)
        torch.save({**checkpoint, "after 60 steps": model.state_dict()}, folder / f"{case}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
