"""Lightning: a callback that hands over loader and steps, shows and saves the average, and logs the rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from metacurv import MetaCurvatureLR
from metacurv.integrations.lightning import MetaCurvatureCallback
from tests.directional.helpers import data, network

pytestmark = pytest.mark.filterwarnings("ignore")


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.seen: list[float] = []
        self.validated: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def training_step(self, batch: Any, _: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.seen.append(loss.item())
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        if index == 0:
            self.validated.append(self.net[0].weight.detach().clone())

    def configure_optimizers(self) -> Any:
        base = torch.optim.AdamW(self.parameters())
        return MetaCurvatureLR(base, model=self, loss_fn=F.cross_entropy, probe="later", race=False)


def fitted(
    folder: Path, module: Module, *, epochs: int = 30, path: Any = None, **options: Any
) -> Any:
    torch.manual_seed(0)
    trainer = lightning.Trainer(
        max_epochs=epochs, default_root_dir=folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", num_sanity_val_steps=0,
        **{"callbacks": [MetaCurvatureCallback()], "enable_checkpointing": False, **options},
    )  # fmt: skip
    loader = DataLoader(data(next(module.parameters()).dtype), batch_size=16)
    trainer.fit(module, loader, loader, ckpt_path=path)
    return trainer


def test_it_trains_and_validates_the_average(tmp_path: Path) -> None:
    module = Module()
    trainer = fitted(tmp_path, module)
    (opt,) = trainer.optimizers
    assert opt._control._horizon == 30 * 6
    assert sum(module.seen[-6:]) < 0.6 * sum(module.seen[:6])
    assert "effective_lr" in trainer.callback_metrics
    assert len(module.validated) == 30
    assert opt.history[0].step == 0


def test_a_checkpoint_has_the_average_and_resumes(tmp_path: Path) -> None:
    module = Module()
    saving = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, filename="{epoch}")
    fitted(tmp_path, module, callbacks=[MetaCurvatureCallback(), saving], enable_checkpointing=True)
    path = tmp_path / "epoch=9.ckpt"
    saved = torch.load(path, weights_only=False)
    torch.testing.assert_close(
        saved["state_dict"]["net.0.weight"], module.validated[9], rtol=0, atol=0
    )
    again = Module()
    fitted(tmp_path, again, path=path)
    for a, b in zip(module.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_probe_batches_are_converted_as_those_of_the_loop(tmp_path: Path, precision: str) -> None:
    module = Module()
    fitted(tmp_path, module, precision=precision)
    assert sum(module.seen[-6:]) < 0.7 * sum(module.seen[:6])


class Thawing(Module):
    def configure_optimizers(self) -> Any:
        base = torch.optim.AdamW(self.net[0].parameters())
        return MetaCurvatureLR(base, model=self, loss_fn=F.cross_entropy, probe="later", race=False)

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 5:
            self.optimizers().add_param_group({"params": list(self.net[3].parameters())})


def test_a_group_is_added_once_through_the_facade(tmp_path: Path) -> None:
    module = Thawing()
    before = module.net[3].weight.detach().clone()
    trainer = fitted(tmp_path, module)
    (opt,) = trainer.optimizers
    assert len(opt.param_groups) == 2
    assert not torch.equal(before, module.net[3].weight)


def test_without_the_callback_the_message_says_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="must be handed over before the first step"):
        fitted(tmp_path, Module(), callbacks=[])


def test_the_callback_leaves_other_optimizers_alone(tmp_path: Path) -> None:
    class Plain(Module):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Plain()
    fitted(tmp_path, module, epochs=2)
    assert isinstance(module.net, nn.Module)
