"""Small losses in float64 and their dense Hessians: what the estimator must get right.

The problems themselves are in ``model_problems.py`` and ``linear_problems.py``, one function each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """A loss as a function of named tensors.

    ``params``: leaves at the point where the Hessian is taken; frozen ones do not require a gradient.
    ``twin``: the same function from operations that torch.func can differentiate, where ``loss`` has others.
    """

    params: dict[str, Tensor]
    loss: Callable[[Values], Tensor]
    twin: Callable[[Values], Tensor] | None = None

    @property
    def live(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.params.items() if p.requires_grad}


def func_hessian(problem: Problem) -> Tensor:
    """[n, n] in the elements of ``problem.live``, in order, by torch.func.hessian."""
    live = {name: p.detach() for name, p in problem.live.items()}
    function = problem.twin or problem.loss

    def of_flat(flat: Tensor) -> Tensor:
        pieces = flat.split([p.numel() for p in live.values()])
        moved = {
            name: piece.view(p.shape) for (name, p), piece in zip(live.items(), pieces, strict=True)
        }
        frozen = {name: p for name, p in problem.params.items() if name not in live}
        return function({**frozen, **moved}).reshape(())

    flat = torch.cat([p.reshape(-1) for p in live.values()])
    hessian = torch.func.hessian(of_flat)(flat).detach()
    # torch.func's own mistakes show here (2.13: layer_norm, batch_norm in train mode); those problems have a twin.
    torch.testing.assert_close(hessian, hessian.t(), rtol=1e-9, atol=1e-12)
    return hessian


def build(make: Callable[[], Problem]) -> Problem:
    """The same numbers every time, without touching the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make()


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def fixed(*shape: int) -> Tensor:
    """The same numbers every time, for data that a module makes when it is imported."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def leaf(*shape: int) -> Tensor:
    return rand(*shape).requires_grad_()


def classify(outputs: Tensor) -> Tensor:
    """Cross-entropy of [..., classes] against fixed labels."""
    flat = outputs.reshape(-1, outputs.shape[-1])
    return F.cross_entropy(flat, torch.arange(len(flat)) % flat.shape[1])
