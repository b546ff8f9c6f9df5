"""MetaCurvatureLR in a ``transformers.Trainer``, which makes optimizer, loader and number of steps by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from metacurv._warnings import warn_user
from metacurv.directional.optimizer import DirectionalLR
from metacurv.integrations.unwrap import our_optimizer


class MetaCurvatureCallback(TrainerCallback):
    """Makes the optimizer of a ``Trainer``, and gives it the Trainer's training data and number of steps.

        curvature = MetaCurvatureCallback(torch.optim.AdamW, weight_decay=0.01)
        trainer = Trainer(model, args, train_dataset=data, callbacks=[curvature],
                          optimizer_cls_and_kwargs=curvature.optimizer_cls_and_kwargs)

    Batches are the Trainer's: mappings with labels in them. The loss is the model's own, computed from its logits. The Trainer
    evaluates, and saves after an evaluation, the average of the iterates; a training resumes bit for bit. Logs get the
    "effective_learning_rate" beside "learning_rate", which is the one that is given and does not count. Set
    ``lr_scheduler_type="constant"``, as the rule brings the rate to zero by itself; another one gets a warning.

    Args:
        base: the class of the base optimizer, or a function that makes one from a list of parameter groups.
        settings: arguments of ``DirectionalLR``, as a dict, such as ``{"max_lr": 1e-3}``.
        loss_fn: the loss of logits and labels; None for the model's own.
        options: arguments of the base. ``weight_decay`` is left to matrices, as the Trainer does.

    Attributes:
        optimizer_cls_and_kwargs: what the Trainer's argument of that name takes.
    """

    def __init__(
        self,
        base: Callable[..., Optimizer] = torch.optim.AdamW,
        *,
        settings: dict[str, Any] | None = None,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        **options: Any,
    ) -> None:
        self._base, self._options = base, options
        self._settings, self._loss_fn = settings or {}, loss_fn
        self.optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] = (lambda: self._make, {})

    def _make(self, model: nn.Module) -> DirectionalLR:
        decay = self._options.get("weight_decay", 0.0)
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if (p.dim() > 1) is is_matrix], "weight_decay": by}
            for is_matrix, by in ((True, decay), (False, 0.0))
        ]
        base = self._base([group for group in groups if group["params"]], **self._options)
        return DirectionalLR(
            base,
            **{
                "model": model,
                "loss_fn": self._loss_fn or ModelsOwnLoss(model),
                "output": _logits,
                "probe": "later",
                **self._settings,
            },
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Hands the training data and the number of steps over."""
        opt = our_optimizer(given["optimizer"])
        if opt is None:
            raise ValueError(
                "optimizer_cls_and_kwargs of the Trainer must be that of the MetaCurvatureCallback, got another optimizer"
            )
        if str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) != "constant":
            warn_user(
                f"lr_scheduler_type must be 'constant' with MetaCurvatureLR, which brings the rate to zero by itself, got "
                f"{args.lr_scheduler_type!r}: both together end too early",
                UserWarning,
            )
        opt.hand_over(given["train_dataloader"], state.max_steps)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Adds the rate that steps take to the logs."""
        opt, logs = our_optimizer(given.get("optimizer")), given.get("logs")
        if opt is not None and logs is not None:
            entry = {"effective_learning_rate": opt.effective_lrs[0]}
            logs.update(entry)
            if state.log_history:
                state.log_history[-1].update(entry)


class ModelsOwnLoss:
    """The loss that a transformers model computes from its logits, as a function of these."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of logits and labels."""
        model: Any = self._model
        while not hasattr(model, "loss_function") and hasattr(model, "module"):
            model = model.module
        config = model.config
        loss: Tensor = model.loss_function(
            logits=logits,
            pooled_logits=logits,
            labels=labels,
            config=config,
            vocab_size=getattr(config, "vocab_size", None),
        )
        return loss


def _logits(output: Any) -> Tensor:
    logits: Tensor = output.logits
    return logits
