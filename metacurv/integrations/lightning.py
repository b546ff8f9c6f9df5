"""MetaCurvatureLR in Lightning, whose Trainer makes loader and number of steps after ``configure_optimizers``."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any

import lightning
from torch import Tensor

from metacurv._warnings import warn_user
from metacurv.integrations.unwrap import our_optimizer
from metacurv.optim.directional.optimizer import DirectionalLR


class MetaCurvatureCallback(lightning.Callback):
    """Gives a ``MetaCurvatureLR(..., probe="later")`` the Trainer's training data and number of steps.

        def configure_optimizers(self):
            base = torch.optim.AdamW(self.parameters())
            return MetaCurvatureLR(base, model=self, loss_fn=F.cross_entropy, probe="later")

        Trainer(max_epochs=10, callbacks=[MetaCurvatureCallback()]).fit(module, train_loader)

    Probe batches are converted as the Trainer's precision converts those of the loop. Validation sees the average of the
    iterates, and checkpoints hold it; a training resumes from the iterate bit for bit. The rate that steps take is logged as
    "effective_lr". An optimizer with a probe of its own keeps that, and its horizon.

    Lightning calls no callback for a checkpoint with ``save_weights_only=True``, which therefore holds the parameters of the
    moment: the iterate, but for one that is saved inside of the validation loop. The module's own hook is called for these
    too, and can put the average in:

        def on_save_checkpoint(self, checkpoint):
            curvature.on_save_checkpoint(self.trainer, self, checkpoint)  # the MetaCurvatureCallback
    """

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Hands the training data and the number of steps over, where an optimizer waits for them."""
        ours = _ours(trainer)
        if not ours:
            warn_user(
                "configure_optimizers must return a MetaCurvatureLR for the MetaCurvatureCallback to be of use, got other "
                "optimizers, which train at their own rates",
                UserWarning,
            )
        for opt in ours:
            if not opt.waits_for_probe:
                continue
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
        """Puts the average into the checkpoint's model; what the module shows stays as it is."""
        ours = _ours(trainer)
        if not ours:
            return
        with ExitStack() as shown:
            for opt in ours:
                with suppress(ValueError):  # it keeps no average
                    shown.enter_context(opt.averaged_parameters())
            state = trainer.strategy.lightning_module_state_dict()
            checkpoint["state_dict"] = {
                name: value.clone() if isinstance(value, Tensor) else value
                for name, value in state.items()
            }


def _ours(trainer: lightning.Trainer) -> list[DirectionalLR]:
    found = [our_optimizer(optimizer) for optimizer in trainer.optimizers]
    return [opt for opt in found if opt is not None]
