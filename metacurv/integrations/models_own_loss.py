"""The loss of a transformers model as a function of its logits, and the check that the model has no other one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metacurv.optim.directional.optimizer import DirectionalLR
from metacurv.optim.directional.probe_batches import ProbeBatches
from metacurv.optim.directional.probe_model import ProbeModel

_ASKED = "loss_fn must be given to the MetaCurvatureCallback, as a function of logits and labels"
_ROUNDING = 1e-4  # relative, of a mean over many tokens in float32; narrower types have their own


class ModelsOwnLoss:
    """The loss that a transformers model computes from its logits, as a function of these."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of logits and labels."""
        model: Any = self._model
        while not hasattr(model, "loss_function") and hasattr(model, "module"):
            model = model.module
        loss_function, config = model.loss_function, model.config
        loss: Tensor = loss_function(
            logits=logits,
            pooled_logits=logits,
            labels=labels,
            config=config,
            vocab_size=getattr(config, "vocab_size", None),
        )
        return loss


@torch.no_grad()
def check_models_own_loss(
    model: nn.Module,
    opt: DirectionalLR,
    probe: Any,
    *,
    batch_fn: Callable[[Any], Any] | None,
    output: Callable[[Any], Any],
) -> None:
    """Checks, on a batch, that ``ModelsOwnLoss`` makes of the logits what the model returns for the same batch.

    Modes, buffers and random states stay as they are. Inputs that are no mapping have no place for labels, and are not checked.

    Args:
        model: a transformers model, which returns a loss for a batch with labels.
        opt: the optimizer, for its seed and its parameters.
        probe: where the batch comes from.
        batch_fn: makes a pair (inputs, labels) of what ``probe`` gives, or None.
        output: picks the logits from the model's output.

    Raises:
        ValueError: the losses differ by more than rounding, or there is none of the logits.
    """
    device = opt.param_groups[0]["params"][0].device
    inputs, labels = ProbeBatches(probe, opt.seed, batch_fn).draw(device)
    if not isinstance(inputs, Mapping):
        return
    whole = ProbeModel(model, lambda loss, _: loss.mean(), opt, False, _loss).batch(
        ({**inputs, "labels": labels}, None), device
    )
    returned = float(whole.value())
    rounding = max(_ROUNDING, *(2 * torch.finfo(dtype).eps for dtype in whole.dtypes()))
    of_logits = ProbeModel(model, ModelsOwnLoss(model), opt, False, output).batch(
        (inputs, labels), device
    )
    leaves = of_logits.output()
    name = type(model).__name__
    try:
        with of_logits.loss_quiet():
            made = float(of_logits.loss.at(leaves))
    except Exception as error:
        raise ValueError(
            f"{_ASKED}, got None: {name} returns {returned:.6g}, and its loss_function fails with the logits alone: {error}"
        ) from error
    if not math.isclose(made, returned, rel_tol=rounding) and not math.isnan(returned):
        raise ValueError(
            f"{_ASKED}, got None: {name} returns {returned:.6g}, and its loss_function makes {made:.6g} of the logits alone"
        )


def _loss(output: Any) -> Tensor:
    """Returns the loss in a model's output, found as the Trainer finds it."""
    loss: Tensor | None = output.get("loss") if isinstance(output, Mapping) else output[0]
    if loss is None:
        raise ValueError(
            f"{_ASKED}, got None, and the model returns no loss for a batch with labels"
        )
    return loss
