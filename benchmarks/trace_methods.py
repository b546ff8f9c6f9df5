"""Ways to the trace of the Hessian of one batch's loss, each from the forward pass on, with K probes where it samples.

All but BackPACK average v . H v over K Rademacher probes, so for a given network and K they have the same standard error and
differ in time alone. BackPACK's diagonal is exact, for sequential stacks of the modules that it knows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import backpack
import curvlinops
import pyhessian
import torch
from backpack.extensions import DiagHessian
from torch import Tensor, nn

import metacurv
from benchmarks.workloads import SEED, loss_function

# From a forward pass to the estimate, as a float on the host.
Trace = Callable[[], float]


@dataclass(frozen=True)
class Problem:
    """A network and a batch: x [n, inputs], y [n]."""

    model: nn.Module
    x: Tensor
    y: Tensor


def of_metacurv(problem: Problem, k: int) -> Trace:
    named = list(problem.model.named_parameters())

    def trace() -> float:
        loss = loss_function(problem.model(problem.x), problem.y)
        return metacurv.hessian_trace(loss, named, n_samples=k, seed=SEED).value

    return trace


def of_plain_loop(problem: Problem, k: int) -> Trace:
    """What one writes by hand."""
    params = list(problem.model.parameters())

    def trace() -> float:
        loss = loss_function(problem.model(problem.x), problem.y)
        gradients = torch.autograd.grad(loss, params, create_graph=True)
        total = 0.0
        for _ in range(k):
            vs = [torch.randint_like(p, high=2) * 2 - 1 for p in params]
            products = torch.autograd.grad(gradients, params, vs, retain_graph=True)
            total += sum((v * h).sum().item() for v, h in zip(vs, products, strict=True))
        return total / k

    return trace


def of_grads_batched(problem: Problem, k: int) -> Trace:
    """All probes in one backward pass under vmap."""
    params = list(problem.model.parameters())

    def trace() -> float:
        loss = loss_function(problem.model(problem.x), problem.y)
        gradients = torch.autograd.grad(loss, params, create_graph=True)
        vs = [torch.randint(0, 2, (k, *p.shape), dtype=p.dtype) * 2 - 1 for p in params]
        products = torch.autograd.grad(gradients, params, vs, is_grads_batched=True)
        return float(sum((v * h).sum() for v, h in zip(vs, products, strict=True))) / k

    return trace


def of_vmap(problem: Problem, k: int) -> Trace:
    """Forward over reverse mode, all probes under vmap."""
    params = {name: p.detach() for name, p in problem.model.named_parameters()}

    def loss_of(values: dict[str, Tensor]) -> Tensor:
        return loss_function(
            torch.func.functional_call(problem.model, values, (problem.x,)), problem.y
        )

    gradient = torch.func.grad(loss_of)

    def sample(vs: dict[str, Tensor]) -> Tensor:
        _, products = torch.func.jvp(gradient, (params,), (vs,))
        return torch.stack([(v * products[name]).sum() for name, v in vs.items()]).sum()

    def trace() -> float:
        vs = {
            n: torch.randint(0, 2, (k, *p.shape), dtype=p.dtype) * 2 - 1 for n, p in params.items()
        }
        return float(torch.vmap(sample)(vs).mean())

    return trace


def of_pyhessian(problem: Problem, k: int) -> Trace:
    model = copy.deepcopy(problem.model)  # it is left in eval mode, with gradients

    def trace() -> float:
        for p in model.parameters():
            p.grad = None  # it adds to what is there, graphs included
        hessian = pyhessian.hessian(model, loss_function, data=(problem.x, problem.y), cuda=False)
        # With its default tolerance it stops when two means happen to be close.
        samples = hessian.trace(maxIter=k, tol=-1e30)
        assert len(samples) == k
        return sum(samples) / k

    return trace


def of_curvlinops(problem: Problem, k: int) -> Trace:
    params = list(problem.model.parameters())

    def trace() -> float:
        operator = curvlinops.HessianLinearOperator(
            problem.model,
            loss_function,
            params,
            [(problem.x, problem.y)],
            check_deterministic=False,  # the check costs 35 gradients
        )
        return float(curvlinops.hutchinson_trace(operator, k))

    return trace


def of_backpack(problem: Problem, k: int) -> Trace:
    """Exact: ``k`` is not used."""
    model = backpack.extend(copy.deepcopy(problem.model))
    extended_loss = backpack.extend(copy.deepcopy(loss_function))

    def trace() -> float:
        loss = extended_loss(model(problem.x), problem.y)
        with backpack.backpack(DiagHessian()):
            loss.backward()
        total = float(torch.stack([p.diag_h.sum() for p in model.parameters()]).sum())
        for p in model.parameters():
            p.grad = None
        return total

    return trace


METHODS: dict[str, Callable[[Problem, int], Trace]] = {
    "metacurv": of_metacurv,
    "plain loop": of_plain_loop,
    "PyHessian": of_pyhessian,
    "curvlinops": of_curvlinops,
    "is_grads_batched": of_grads_batched,
    "vmap(jvp(grad))": of_vmap,
    "BackPACK, exact": of_backpack,
}
