"""A training on the GPU, which the processes of ddp_on_gpus.py share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import metacurv
from tests.cuda.gpu import DEVICE


def gpu_network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    stack = nn.Sequential(nn.Linear(40, 100), nn.ReLU(), nn.Linear(100, 10))
    return stack.to(DEVICE, dtype)


def gpu_data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 40, generator=generator).to(DEVICE, dtype)
    return x, torch.randint(0, 10, (400,), generator=generator).to(DEVICE)


def wrapped_by(
    rule: str,
    model: nn.Module,
    base: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    **options: Any,
) -> metacurv.MetaCurvatureLR:
    if rule == "reciprocal":
        return metacurv.MetaCurvatureLR(base, update_freq=2, model=model, **options)
    probe = [(x[i : i + 100], y[i : i + 100]) for i in range(0, len(x), 100)]
    options = {"average": True, **options}
    return metacurv.MetaCurvatureLR(
        base, rule=rule, model=model, loss_fn=functional.cross_entropy, probe=probe, **options
    )


def gpu_step(model: nn.Module, opt: metacurv.MetaCurvatureLR, x: Tensor, y: Tensor) -> Tensor:
    opt.zero_grad()
    loss = functional.cross_entropy(model(x), y)
    opt.update_curvature(loss)
    loss.backward()
    opt.step()
    return loss.detach()
