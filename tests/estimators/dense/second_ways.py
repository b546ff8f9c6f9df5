"""Curvature by other means than ``truth.py``, to hold it against: torch.func, and central differences."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, jacfwd, jacrev

from tests.estimators.dense.case import FORWARD_SEED, Case
from tests.estimators.dense.truth import output_hessian


def outputs_of(case: Case, flat: Tensor) -> Tensor:
    """The model's output as a function of all live elements [P]."""
    pieces = flat.split([p.numel() for p in case.live.values()])
    moved = {
        name: piece.view(p.shape)
        for (name, p), piece in zip(case.live.items(), pieces, strict=True)
    }
    return functional_call(case.model, moved, case.arguments)


def func_matrices(case: Case) -> dict[str, Tensor]:
    """kind -> [P, P]: forward over reverse for the Hessian, forward mode for J and H_out."""
    # Of a model that has one module in two places functional_call (torch 2.13) leaves the parameters out afterwards.
    case = dataclasses.replace(case, model=copy.deepcopy(case.model))
    flat = torch.cat([p.detach().flatten() for p in case.live.values()])
    output = case.output().detach()

    def at_flat(function: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(FORWARD_SEED)
            return jacfwd(function, randomness="same")(flat)

    hessian = at_flat(jacrev(lambda p: case.loss_fn(outputs_of(case, p), case.targets)))
    jacobian = at_flat(lambda p: outputs_of(case, p).flatten())
    in_output = torch.func.hessian(lambda out: case.loss_fn(out.view_as(output), case.targets))(
        output.flatten()
    )
    return {"hessian": hessian.detach(), "ggn": (jacobian.t() @ in_output @ jacobian).detach()}


def difference_diagonals(case: Case, every: int, step: float = 1e-5) -> dict[str, Tensor]:
    """kind -> every so manieth element of the diagonal, from gradients and outputs a step to both sides."""
    inner = output_hessian(case.loss_fn, case.output(), case.targets)
    parameters = list(case.live.values())
    elements = [e for p in parameters for e in p.data.view(-1).split(1)]
    hessian, ggn = [], []
    for index in range(0, len(elements), every):
        kept = elements[index].clone()
        outputs, slopes = [], []
        for sign in (1, -1):
            elements[index].copy_(kept + sign * step)
            outputs.append(case.output().detach().flatten())
            parts = torch.autograd.grad(case.loss(), parameters, materialize_grads=True)
            slopes.append(torch.cat([part.flatten() for part in parts])[index])
        elements[index].copy_(kept)
        column = (outputs[0] - outputs[1]) / (2 * step)
        ggn.append(column @ inner @ column)
        hessian.append((slopes[0] - slopes[1]) / (2 * step))
    return {"hessian": torch.stack(hessian), "ggn": torch.stack(ggn)}
