"""The base optimizer's own direction, for rules that look before they step."""

from __future__ import annotations

import torch
from torch import Tensor

from .methods import Setting, set_rate


class OwnStep:
    """Steps the base once for lr = 1 and takes that back: it gives u of  theta - lr u."""

    def __init__(self, setting: Setting, optimizer: torch.optim.Optimizer) -> None:
        self._parameters = [p.detach() for p in setting.model.parameters()]
        self._optimizer = optimizer

    @torch.no_grad()
    def look(self) -> list[Tensor]:
        """Returns u, in the order of the parameters, which are as before; the base's state has gone on."""
        self._before = [p.clone() for p in self._parameters]
        set_rate(self._optimizer, 1.0)
        self._optimizer.step()
        u = torch._foreach_sub(self._before, self._parameters)
        torch._foreach_copy_(self._parameters, self._before)
        return list(u)

    @torch.no_grad()
    def go(self, u: list[Tensor], lr: float) -> None:
        """Moves the parameters to theta - lr u, from where ``look`` was."""
        torch._foreach_copy_(self._parameters, torch._foreach_add(self._before, u, alpha=-lr))
