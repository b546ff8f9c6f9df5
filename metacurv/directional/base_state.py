"""A copy of a base optimizer's state, for steps that are taken back."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class BaseState:
    """A copy of what ``base`` keeps between steps: its state and the entries of its parameter groups.

    Before the first step most optimizers have no state, so the copy costs nothing. Parameters and gradients are not part of it.
    """

    def __init__(self, base: Optimizer) -> None:
        self._base = base
        self._groups = [dict(group) for group in base.param_groups]
        self._state = {
            parameter: {name: _copied(value) for name, value in entries.items()}
            for parameter, entries in base.state.items()
        }

    def restore(self) -> None:
        """Puts the whole state back and drops entries that are new since the copy."""
        for group, before in zip(self._base.param_groups, self._groups, strict=True):
            group.clear()
            group.update(before)
        state = self._base.state
        for parameter in list(state):
            if parameter not in self._state:
                del state[parameter]
        for parameter, entries in self._state.items():
            now: dict[str, Any] = state[parameter]
            for name in now.keys() - entries.keys():
                del now[name]
            for name, value in entries.items():
                held = now.get(name)
                if isinstance(held, Tensor) and isinstance(value, Tensor):
                    held.copy_(value)
                else:
                    now[name] = value


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
