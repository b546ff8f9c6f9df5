"""What the drop-in tests share: a tiny model, every optimizer, a loop with readings.

Its batches depend on the step only.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metacurv import MetaCurvatureLR
from metacurv.optim.carried_state import taken_out
from tests.helpers import own

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]

# Every torch optimizer that steps from one dense gradient, in the variants that exist on CPU. Left
# out: LBFGS, which is refused (test_closure.py), and SparseAdam, which refuses dense gradients
# (test_gradients.py).
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "Adadelta-foreach": lambda p: torch.optim.Adadelta(p, lr=0.5, foreach=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, lr_decay=1e-2),
    "Adagrad-fused": lambda p: torch.optim.Adagrad(p, lr=1e-2, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "Adam-amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "Adam-foreach": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=True),
    "Adam-fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "Adam-tensor-lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-2)),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "AdamW-fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=1e-2, lambd=1e-2, t0=2),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.5, centered=True),
    "RMSprop-foreach": lambda p: torch.optim.RMSprop(p, lr=1e-2, foreach=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD-foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "SGD-fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "SGD-nesterov": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2
    ),
    "SGD-tensor-lr": lambda p: torch.optim.SGD(p, lr=torch.tensor(0.1), momentum=0.9),
}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["Muon"] = lambda p: torch.optim.Muon([q for q in p if q.ndim == 2], lr=1e-2)


def mlp(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """4 -> 8 -> 3, tanh, always the same weights; the global random state stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def fresh_batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """x [8, 4] and classes y [8], a function of ``step``."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(8, 4, generator=generator)
    return x.to(dtype), torch.randint(3, (8,), generator=generator)


def loss_of(model: nn.Module, step: int = 0) -> Tensor:
    """Cross-entropy of the batch of ``step``."""
    x, y = fresh_batch(step, next(model.parameters()).dtype)
    return nn.functional.cross_entropy(model(x), y)


def train_on_fresh(
    model: nn.Module, opt: Optimizer, steps: int, *, start: int = 0, curvature: bool = True
) -> None:
    """The loop of the README; without ``curvature``, the loop it came from."""
    for step in range(start, start + steps):
        opt.zero_grad()
        loss = loss_of(model, step)
        if curvature:
            assert isinstance(opt, MetaCurvatureLR)
            opt.update_curvature(loss)
        loss.backward()
        opt.step()


def spring(w: Tensor, stiffness: float) -> Tensor:
    """stiffness / 2 * sum w_i^2: gradient stiffness * w, Hessian stiffness * I.

    The Hessian is diagonal, so every probe gives its trace, stiffness * w.numel(), exactly.
    """
    return 0.5 * stiffness * w.square().sum()


def leaf(*values: float, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    """A parameter vector with these entries."""
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def weights(model: nn.Module) -> list[Tensor]:
    """Copies of the parameters."""
    return [parameter.detach().clone() for parameter in model.parameters()]


def curvature_state(opt: MetaCurvatureLR) -> dict[str, Any]:
    """What opt saves of its own."""
    state: dict[str, Any] = own(opt.state_dict())
    return state


def bare_state(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict without what the wrapper added to it."""
    state = taken_out(state, [])[2]
    groups = [{k: v for k, v in g.items() if k != "lr_scale"} for g in state["param_groups"]]
    return {"state": state["state"], "param_groups": groups}


def record_base_steps(base: Optimizer) -> list[list[dict[str, Any]]]:
    """A list that gets, at every step of ``base``, what its groups held at that moment (parameters
    left out).
    """
    seen: list[list[dict[str, Any]]] = []

    def hook(optimizer: Optimizer, *_: Any) -> None:
        seen.append([settings(group) for group in optimizer.param_groups])

    base.register_step_pre_hook(hook)
    return seen


def settings(group: dict[str, Any]) -> dict[str, Any]:
    """A copy of a parameter group without its parameters and without the wrapper's entry."""
    return {k: copy.deepcopy(v) for k, v in group.items() if k not in ("params", "lr_scale")}


def set_lr(group: dict[str, Any], lr: float) -> None:
    """Sets an lr, in place where it is a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def lrs(opt: Optimizer) -> list[float]:
    """The learning rates in the groups."""
    return [float(group["lr"]) for group in opt.param_groups]


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The first layer at lr 0.05 and the rest at lr 0.02."""
    first, *rest = model.children()
    others: Iterable[nn.Parameter] = (p for layer in rest for p in layer.parameters())
    return [
        {"params": list(first.parameters()), "lr": 0.05},
        {"params": list(others), "lr": 0.02},
    ]


def through_a_file(state: Any) -> Any:
    """torch.save, then torch.load(weights_only=True)."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def wrapped(name: str, model: nn.Module, **options: Any) -> MetaCurvatureLR:
    """One of OPTIMIZERS over the parameters of ``model``, measured every third step, two probes."""
    options = {"alpha": 0.3, "update_freq": 3, "n_hutchinson_samples": 2, "seed": 11, **options}
    return MetaCurvatureLR(OPTIMIZERS[name](list(model.parameters())), **options)
