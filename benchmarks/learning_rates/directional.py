"""The directional rule, and the reciprocal one, as the README has them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

import metacurv

from .grid import SGD_FACTOR
from .methods import Maker, Method, Setting

RECIPROCAL_ALPHA = 1e-2


def directional(setting: Setting, *, held_out: bool = False, **options: Any) -> Method:
    """``MetaCurvatureLR`` with the directional rule on the task's base optimizer, made with the user's rate.

    Args:
        setting: where to work.
        held_out: probe the validation data instead of the training data.
        options: arguments of ``MetaCurvatureLR``, beside those every use of the rule has.
    """
    task, part = setting.task, setting.splits.validation if held_out else setting.splits.train
    optimizer = metacurv.MetaCurvatureLR(
        task.optimizer(setting.model, setting.user_lr),
        model=setting.model,
        loss_fn=task.loss_fn,
        probe=DataLoader(TensorDataset(part.x, part.y), batch_size=task.batch_size),
        seed=setting.seed,
        **options,
    )
    method = Method(optimizer)
    method.rate = lambda: optimizer.effective_lrs[0]
    method.averaged = optimizer.averaged_parameters
    return method


class Reciprocal(Method):
    """The reciprocal rule from lr = 1e-3 and with alpha = 0.01, as in the experiment that metacurv starts from."""

    def __init__(self, setting: Setting) -> None:
        lr = setting.user_lr * (SGD_FACTOR if setting.task.base == "sgd" else 1.0)
        self._wrapper = metacurv.MetaCurvatureLR(
            setting.task.optimizer(setting.model, lr), alpha=RECIPROCAL_ALPHA, seed=setting.seed
        )
        super().__init__(self._wrapper)

    def forward(self) -> AbstractContextManager[Any]:
        """Runs the forward pass with attention that can be differentiated twice."""
        return sdpa_kernel(SDPBackend.MATH)

    def with_loss(self, loss: Tensor) -> None:
        """The line that the rule needs in the loop."""
        self._wrapper.update_curvature(loss)


DIRECTIONAL: dict[str, Maker] = {
    "directional": lambda setting: directional(setting, horizon=setting.task.steps),
    "directional, no horizon": lambda setting: directional(setting),
    "directional, always raced": lambda setting: directional(
        setting, horizon=setting.task.steps, race=True
    ),
    "directional, held out": lambda setting: directional(
        setting,
        held_out=True,
        horizon=setting.task.steps,
        rule=metacurv.DirectionalRule.held_out(),
    ),
    "reciprocal": Reciprocal,
}
