"""MetaCurvatureLR in a ``transformers.Trainer``, which makes optimizer, loader and number of steps by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from metacurv import _validate
from metacurv._warnings import warn_user
from metacurv.integrations.models_own_loss import ModelsOwnLoss, check_models_own_loss
from metacurv.integrations.unwrap import our_optimizer
from metacurv.optim.directional.optimizer import DirectionalLR
from metacurv.optim.directional.probe_sources import LATER

_STEADY = ("constant", "constant_with_warmup")  # the schedulers that never bring the rate down


class MetaCurvatureCallback(TrainerCallback):
    """Makes the optimizer of a ``Trainer``, and gives it the Trainer's training data and number of steps.

        curvature = MetaCurvatureCallback(torch.optim.AdamW, weight_decay=0.01)
        trainer = Trainer(model, args, train_dataset=data, callbacks=[curvature],
                          optimizer_cls_and_kwargs=curvature.optimizer_cls_and_kwargs)

    Batches are the Trainer's: mappings with labels in them. The loss is the model's own, computed from its logits; where the
    model returns another one for a batch (T5 and BART do, and mixtures of experts that add a loss of their router), the
    training does not begin without ``loss_fn``. The Trainer evaluates, and saves after an evaluation, the average of the
    iterates; a training resumes bit for bit. Logs get the "effective_learning_rate" beside "learning_rate", which is the one
    that is given and does not count. Set ``lr_scheduler_type="constant"``, as the rule brings the rate to zero by itself; one
    that brings it down too gets a warning.

    Args:
        base: the class of the base optimizer, or a function that makes one from a list of parameter groups.
        settings: arguments of ``DirectionalLR``, as a dict, such as ``{"max_lr": 1e-3}``. With a "probe" of your own the
            Trainer's training data and number of steps are not handed over.
        loss_fn: the loss of logits and labels; None for the model's own. A loss that the Trainer computes (``compute_loss``,
            ``compute_loss_func``, ``label_smoothing_factor``) is to be given here too.
        options: arguments of the base. ``weight_decay`` is left to matrices, as the Trainer does.

    Attributes:
        optimizer_cls_and_kwargs: what the Trainer's argument of that name takes.

    Raises:
        TypeError: ``base`` makes no optimizers.
    """

    def __init__(
        self,
        base: Callable[..., Optimizer] = torch.optim.AdamW,
        *,
        settings: dict[str, Any] | None = None,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        **options: Any,
    ) -> None:
        if not callable(base):
            raise TypeError(
                "base must be a class of optimizers, or a function that makes one from a list of parameter groups, got "
                f"{_validate.describe(base)}"
            )
        self._base, self._options = base, options
        self._settings = dict(settings or {})
        if loss_fn is not None:
            self._settings.setdefault("loss_fn", loss_fn)
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
                "loss_fn": ModelsOwnLoss(model),
                "output": _logits,
                "probe": LATER,
                **self._settings,
            },
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Hands the training data and the number of steps over, where the optimizer waits for them.

        Raises:
            ValueError: the Trainer has another optimizer, or the loss of its training is not the model's own of the logits.
        """
        opt = our_optimizer(given["optimizer"])
        if opt is None:
            raise ValueError(
                "optimizer_cls_and_kwargs of the Trainer must be that of the MetaCurvatureCallback, got another optimizer"
            )
        if args.lr_scheduler_type not in _STEADY:
            warn_user(
                "lr_scheduler_type must be 'constant' or 'constant_with_warmup' with MetaCurvatureLR, which brings the rate to "
                f"zero by itself, got {args.lr_scheduler_type!r}: both together end too early",
                UserWarning,
            )
        data, waits = given["train_dataloader"], opt.waits_for_probe
        if "loss_fn" not in self._settings:
            probe = data if waits else self._settings.get("probe", LATER)
            self._check_loss(args, opt, given["model"], probe)
        if waits:
            opt.hand_over(data, state.max_steps)

    def _check_loss(
        self, args: TrainingArguments, opt: DirectionalLR, model: nn.Module, probe: Any
    ) -> None:
        """Raises where the training has another loss than the model's own; a probe that was handed over was checked then."""
        if args.label_smoothing_factor != 0:
            raise ValueError(
                "loss_fn must be given to the MetaCurvatureCallback, as a function of logits and labels, with "
                f"label_smoothing_factor={args.label_smoothing_factor}, got None: the model's own loss is without the smoothing"
            )
        if not isinstance(probe, str):
            check_models_own_loss(
                model,
                opt,
                probe,
                batch_fn=self._settings.get("batch_fn"),
                output=self._settings.get("output", _logits),
            )

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


def _logits(output: Any) -> Tensor:
    """Returns the logits of a model's output, an object or a mapping."""
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise TypeError(
            "model must return an output with logits, or the MetaCurvatureCallback must get "
            f'settings={{"output": ...}}, which picks the tensor that loss_fn gets; got {_validate.describe(output)}'
        )
    return found
