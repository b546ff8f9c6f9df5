"""Accelerate: prepared loaders are seen through, and the order of prepare does not matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler

from metacurv import MetaCurvatureLR
from tests.optim.directional.directional_training import data, network

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def trained(order: str, *, epochs: int = 4, accumulate: int = 1, sampler: Any = None) -> Any:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model: Any = network()
    torch.manual_seed(3)
    loader: Any = DataLoader(data(), batch_size=16, shuffle=sampler is None, sampler=sampler)
    if order == "loader first":
        loader = accelerator.prepare(loader)
    if order == "model first":
        model = accelerator.prepare(model)
    opt: Any = MetaCurvatureLR(
        torch.optim.AdamW(model.parameters()), model=model, loss_fn=nn.functional.cross_entropy,
        probe=loader, horizon=200, race=False,
    )  # fmt: skip
    rest = {
        "loader first": (model, opt),
        "model first": (opt, loader),
        "together": (model, opt, loader),
    }[order]
    prepared = accelerator.prepare(*rest)
    if order == "loader first":
        model, opt = prepared
    elif order == "model first":
        opt, loader = prepared
    else:
        model, opt, loader = prepared
    order_of_loop, steps = [], 0
    for _ in range(epochs):
        for x, y in loader:
            order_of_loop.append(x[0, 0].item())
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(x), y))
                opt.step()
                steps += accelerator.sync_gradients
                opt.zero_grad()
    return order_of_loop, steps, list(accelerator.unwrap_model(model).parameters())


def test_the_order_of_prepare_does_not_matter() -> None:
    one, *others = (trained(order) for order in ("together", "loader first", "model first"))
    for other in others:
        for a, b in zip(one[2], other[2], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def choosing() -> WeightedRandomSampler:
    """Draws from all of the data, in an order of its own; the rule then goes through the loader."""
    return WeightedRandomSampler([1.0] * 96, 96)


@pytest.mark.parametrize("sampler", [None, choosing])
def test_the_loop_keeps_its_epochs_and_its_order(sampler: Any) -> None:
    """Six batches an epoch, accumulated by four: two optimizer steps; bare AdamW sees the same batches."""
    chosen = None if sampler is None else sampler()
    order, steps, _ = trained("loader first", accumulate=4, sampler=chosen)
    assert steps == 4 * 2
    torch.manual_seed(3)
    accelerator = Accelerator(cpu=True)
    bare: Any = accelerator.prepare(
        DataLoader(data(), batch_size=16, shuffle=chosen is None, sampler=chosen)
    )
    assert order == [x[0, 0].item() for _ in range(4) for x, _ in bare]


def test_a_sampler_that_chooses_is_kept() -> None:
    chosen = WeightedRandomSampler([1.0] * 10 + [0.0] * 86, 64)
    accelerator = Accelerator(cpu=True)
    model = network()
    loader: Any = accelerator.prepare(DataLoader(data(), batch_size=16, sampler=chosen))
    opt = MetaCurvatureLR(
        torch.optim.AdamW(model.parameters()), model=model, loss_fn=nn.functional.cross_entropy,
        probe=loader, horizon=200,
    )  # fmt: skip
    first = {row.item() for row in data().tensors[0][:10, 0]}
    for _ in range(8):
        x, _ = opt._control._probes.draw(torch.device("cpu"))  # type: ignore[union-attr]
        assert {row.item() for row in x[:, 0]} <= first
    assert not loader.end_of_dataloader
