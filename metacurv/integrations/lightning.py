"""MetaCurvatureLR in Lightning, whose Trainer makes loader and number of steps after ``configure_optimizers``."""

from __future__ import annotations

from typing import Any

import lightning

from metacurv.directional.optimizer import DirectionalLR
from metacurv.integrations.unwrap import our_optimizer


class MetaCurvatureCallback(lightning.Callback):
    """Gives a ``MetaCurvatureLR(..., probe="later")`` the Trainer's training data and number of steps.

        def configure_optimizers(self):
            base = torch.optim.AdamW(self.parameters())
            return MetaCurvatureLR(base, model=self, loss_fn=F.cross_entropy, probe="later")

        Trainer(max_epochs=10, callbacks=[MetaCurvatureCallback()]).fit(module, train_loader)

    Probe batches are converted as the Trainer's precision converts those of the loop. Validation sees the average of the
    iterates, and checkpoints hold it; a training resumes from the iterate bit for bit. The rate that steps take is logged as
    "effective_lr".
    """

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Hands the training data and the number of steps over."""
        for opt in _ours(trainer):
            steps = trainer.estimated_stepping_batches
            horizon = int(steps) if steps not in (-1, float("inf")) else None
            convert = trainer.strategy.precision_plugin.convert_input
            opt.hand_over(trainer.train_dataloader, horizon, convert=convert)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: Any
    ) -> None:
        """Logs the rate of the next step."""
        for opt in _ours(trainer):
            module.log("effective_lr", opt.effective_lrs[0])

    def on_validation_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Shows the average."""
        for opt in _ours(trainer):
            opt.eval()

    def on_validation_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Puts the iterate back."""
        for opt in _ours(trainer):
            opt.train()

    def on_save_checkpoint(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        """Puts the average into the checkpoint's model."""
        for opt in _ours(trainer):
            opt.eval()
            checkpoint["state_dict"] = {k: v.clone() for k, v in module.state_dict().items()}
            opt.train()


def _ours(trainer: lightning.Trainer) -> list[DirectionalLR]:
    found = [our_optimizer(optimizer) for optimizer in trainer.optimizers]
    return [opt for opt in found if opt is not None]
