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
from metacurv.integrations.unwrap import our_optimizer
from tests.optim.directional.directional_training import data, network

pytestmark = pytest.mark.filterwarnings("ignore")


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.seen: list[float] = []
        self.validated: list[Tensor] = []
        self.iterates: list[Tensor] = []
        self.averages: list[Tensor] = []

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

    def on_train_epoch_end(self) -> None:
        """Keeps the iterate, since validation is over, and the average."""
        self.iterates.append(self.net[0].weight.detach().clone())
        opt = our_optimizer(self.trainer.optimizers[0])
        if opt is not None:
            with opt.averaged_parameters():
                self.averages.append(self.net[0].weight.detach().clone())

    def configure_optimizers(self) -> Any:
        base = torch.optim.AdamW(self.parameters())
        return MetaCurvatureLR(base, model=self, loss_fn=F.cross_entropy, probe="later", race=False)


def fitted(
    folder: Path, module: Module, *, epochs: int = 30, path: Any = None, validates: bool = True, **options: Any
) -> Any:  # fmt: skip
    torch.manual_seed(0)
    trainer = lightning.Trainer(
        max_epochs=epochs, default_root_dir=folder, logger=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", num_sanity_val_steps=0,
        **{"callbacks": [MetaCurvatureCallback()], "enable_checkpointing": False, **options},
    )  # fmt: skip
    loader = DataLoader(data(next(module.parameters()).dtype), batch_size=16)
    trainer.fit(module, loader, loader if validates else None, ckpt_path=path)
    return trainer


def test_it_trains_and_validates_the_average(tmp_path: Path) -> None:
    module = Module()
    trainer = fitted(tmp_path, module)
    (opt,) = trainer.optimizers
    assert opt._control._plan.horizon == 30 * 6
    assert sum(module.seen[-6:]) < 0.6 * sum(module.seen[:6])
    assert "effective_lr" in trainer.callback_metrics
    assert opt.history[0].step == 0
    assert len(module.validated) == 30
    assert all(map(torch.equal, module.validated, module.averages))
    before_the_finish = zip(module.iterates[3:15], module.averages[3:15], strict=True)
    assert not any(torch.equal(iterate, average) for iterate, average in before_the_finish)


def saving(folder: Path, **options: Any) -> dict[str, Any]:
    """Arguments of a Trainer that saves every epoch."""
    checkpoints = ModelCheckpoint(dirpath=folder, save_top_k=-1, filename="{epoch}", **options)
    return {"callbacks": [MetaCurvatureCallback(), checkpoints], "enable_checkpointing": True}


def saved_weight(folder: Path, epoch: int) -> Any:
    saved = torch.load(folder / f"epoch={epoch}.ckpt", weights_only=False)
    return saved["state_dict"]["net.0.weight"]


@pytest.mark.parametrize("epoch", [0, 9])
@pytest.mark.parametrize("validates", [True, False])
def test_a_checkpoint_has_the_average_and_resumes(
    tmp_path: Path, validates: bool, epoch: int
) -> None:
    module = Module()
    fitted(tmp_path, module, validates=validates, **saving(tmp_path))
    saved = saved_weight(tmp_path, epoch)
    torch.testing.assert_close(saved, module.averages[epoch], rtol=0, atol=0)
    assert not torch.equal(saved, module.iterates[epoch])
    again = Module()
    fitted(tmp_path, again, validates=validates, path=tmp_path / f"epoch={epoch}.ckpt")
    for a, b in zip(module.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class SavingInValidation(Module):
    """Saves inside of the validation loop."""

    def validation_step(self, batch: Any, index: int) -> None:
        if index == 0:
            folder = self.trainer.default_root_dir
            self.trainer.save_checkpoint(Path(folder) / f"epoch={self.current_epoch}.ckpt")
        super().validation_step(batch, index)


def test_the_average_stays_shown_where_validation_saves(tmp_path: Path) -> None:
    module = SavingInValidation()
    fitted(tmp_path, module, epochs=10)
    assert all(map(torch.equal, module.validated, module.averages))
    assert torch.equal(saved_weight(tmp_path, 5), module.averages[5])
    assert not torch.equal(module.averages[5], module.iterates[5])


class SavingBoth(Module):
    """Puts the average into checkpoints of weights only, as the callback's docstring says."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        MetaCurvatureCallback().on_save_checkpoint(self.trainer, self, checkpoint)


@pytest.mark.parametrize("kind", [Module, SavingBoth])
def test_weights_only_have_the_average_by_a_hook_of_the_module(tmp_path: Path, kind: Any) -> None:
    module = kind()
    fitted(tmp_path, module, epochs=10, **saving(tmp_path, save_weights_only=True))
    kept = module.averages if kind is SavingBoth else module.iterates
    assert torch.equal(saved_weight(tmp_path, 5), kept[5])
    assert not torch.equal(module.averages[5], module.iterates[5])


def test_without_an_average_a_checkpoint_has_the_iterate(tmp_path: Path) -> None:
    class Single(Module):
        def configure_optimizers(self) -> Any:
            base = torch.optim.AdamW(self.parameters())
            return MetaCurvatureLR(
                base, model=self, loss_fn=F.cross_entropy, probe="later", average=False
            )

        def on_train_epoch_end(self) -> None:
            self.iterates.append(self.net[0].weight.detach().clone())

    module = Single()
    fitted(tmp_path, module, epochs=3, **saving(tmp_path))
    assert torch.equal(saved_weight(tmp_path, 1), module.iterates[1])


def test_a_probe_of_ones_own_stays(tmp_path: Path) -> None:
    class Own(Module):
        def configure_optimizers(self) -> Any:
            base = torch.optim.AdamW(self.parameters())
            return MetaCurvatureLR(
                base, model=self, loss_fn=F.cross_entropy, probe=own, horizon=50, race=False
            )

    own = [data().tensors]
    trainer = fitted(tmp_path, Own(), epochs=2)
    (opt,) = trainer.optimizers
    assert opt._control._probes._source._batches is own
    assert opt._control._plan.horizon == 50


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
    with pytest.warns(UserWarning, match="configure_optimizers must return a MetaCurvatureLR"):
        fitted(tmp_path, module, epochs=2)
    assert isinstance(module.net, nn.Module)
