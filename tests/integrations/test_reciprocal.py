"""The reciprocal rule in loops of frameworks: the same parameters, to the bit, as in a loop of plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from metacurv import MetaCurvatureLR
from tests.optim.directional.directional_training import data, loader, network

pytestmark = pytest.mark.filterwarnings("ignore")

EPOCHS = 3


def wrapped(net: torch.nn.Module) -> MetaCurvatureLR:
    return MetaCurvatureLR(torch.optim.AdamW(net.parameters(), lr=0.01), alpha=0.1, update_freq=4)


@pytest.fixture(scope="module")
def plain() -> list[Tensor]:
    """The parameters after a loop of plain torch; the rule matters to them."""
    net = network()
    opt = wrapped(net)
    for _ in range(EPOCHS):
        for x, y in loader():
            opt.zero_grad()
            loss = F.cross_entropy(net(x), y)
            opt.update_curvature(loss)
            loss.backward()
            opt.step()
    assert opt.param_groups[0]["lr_scale"] < 0.95
    return [p.detach() for p in net.parameters()]


def assert_same_parameters(net: torch.nn.Module, plain: list[Tensor]) -> None:
    for p, expected in zip(net.parameters(), plain, strict=True):
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=0)


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def training_step(self, batch: Any, _: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.optimizers().update_curvature(loss)
        return loss

    def configure_optimizers(self) -> Any:
        return wrapped(self.net)


def test_the_reciprocal_rule_in_lightning(tmp_path: Path, plain: list[Tensor]) -> None:
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=EPOCHS, default_root_dir=tmp_path, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(module, loader())
    assert_same_parameters(module.net, plain)


def test_the_reciprocal_rule_in_accelerate(plain: list[Tensor]) -> None:
    accelerator = Accelerator(cpu=True)
    net = network()
    model, opt, batches = accelerator.prepare(net, wrapped(net), loader())
    for _ in range(EPOCHS):
        for x, y in batches:
            opt.zero_grad()
            loss = F.cross_entropy(model(x), y)
            opt.optimizer.update_curvature(loss)
            accelerator.backward(loss)
            opt.step()
    assert_same_parameters(net, plain)


class ReadingTrainer(Trainer):
    def compute_loss(self, model: Any, inputs: Any, **_: Any) -> Tensor:
        loss = F.cross_entropy(model(inputs["x"]), inputs["labels"])
        self.optimizer.optimizer.update_curvature(loss)
        return loss


def test_the_reciprocal_rule_in_the_trainer(tmp_path: Path, plain: list[Tensor]) -> None:
    net = network()
    arguments = TrainingArguments(
        str(tmp_path), num_train_epochs=EPOCHS, per_device_train_batch_size=16, report_to=[], use_cpu=True,
        disable_tqdm=True, save_strategy="no", lr_scheduler_type="constant", max_grad_norm=0.0,
        train_sampling_strategy="sequential", remove_unused_columns=False,
    )  # fmt: skip

    def collate(rows: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        return {"x": torch.stack([x for x, _ in rows]), "labels": torch.stack([y for _, y in rows])}

    opt = wrapped(net)
    ReadingTrainer(
        net, arguments, train_dataset=data(), data_collator=collate, optimizers=(opt, None)
    ).train()
    assert_same_parameters(net, plain)
