"""What one writes by hand in parameter space, without a wait for the host between probes."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.curvature_truth import parameters, quadratic_form, rademacher
from benchmarks.curvature_workloads import CNN, MLP, TRANSFORMER, Workload
from benchmarks.peers.peer import Make, Peer, Trace, any_network, signs, total, trainable

# Probes under one vmap: measured best; more fall out of the cache.
AT_ONCE = {MLP: 64, CNN: 16, TRANSFORMER: 4}


def chunks(k: int, workload: Workload) -> list[int]:
    """``k`` in parts of at most AT_ONCE."""
    size = AT_ONCE[workload.family]
    return [min(size, k - begin) for begin in range(0, k, size)]


def hessian_loop(workload: Workload, k: int) -> Trace:
    """One graph of the gradient, one backward pass through it a probe."""
    params = trainable(workload.model)

    def trace() -> float:
        loss = workload.loss(workload.model(workload.x), workload.y)
        gradients = torch.autograd.grad(loss, params, create_graph=True)
        found = []
        for i in range(k):
            vs = signs(params)
            products = torch.autograd.grad(gradients, params, vs, retain_graph=i + 1 < k)
            found.append(total(vs, products))
        return float(torch.stack(found).mean())

    return trace


def hessian_batched(workload: Workload, k: int) -> Trace:
    """The same with ``is_grads_batched``."""
    params = trainable(workload.model)

    def trace() -> float:
        loss = workload.loss(workload.model(workload.x), workload.y)
        gradients = torch.autograd.grad(loss, params, create_graph=True)
        found = []
        for size in chunks(k, workload):
            vs = [torch.randint(0, 2, (size, *p.shape), dtype=p.dtype) * 2 - 1 for p in params]
            products = torch.autograd.grad(
                gradients, params, vs, is_grads_batched=True, retain_graph=True
            )
            found.append(total(vs, products))
        return float(torch.stack(found).sum()) / k

    return trace


def vmapped(kind: str) -> Make:
    """Forward over reverse for the Hessian; for the GGN forward mode alone, then the loss's Hessian in closed form."""

    def make(workload: Workload, k: int) -> Trace:
        params = parameters(workload)
        form = torch.vmap(quadratic_form(workload, kind))

        def trace() -> float:
            found = [form(rademacher(params, size)).sum() for size in chunks(k, workload)]
            return float(torch.stack(found).sum()) / k

        return trace

    return make


def ggn_loop(workload: Workload, k: int) -> Trace:
    """J v by forward mode, the loss's Hessian by a double backward, J' by reverse mode: a GGN-vector product a probe."""
    params = {name: p.detach() for name, p in workload.model.named_parameters()}

    def output(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(workload.model, values, (workload.x,))

    gradient = torch.func.grad(lambda logits: workload.loss(logits, workload.y))

    def trace() -> float:
        logits, pull = torch.func.vjp(output, params)
        found = []
        for _ in range(k):
            vs = {name: torch.randint_like(p, high=2) * 2 - 1 for name, p in params.items()}
            _, moved = torch.func.jvp(output, (params,), (vs,))
            (products,) = pull(torch.func.jvp(gradient, (logits,), (moved,))[1])
            found.append(total(list(vs.values()), list(products.values())))
        return float(torch.stack(found).mean())

    return trace


ANYTHING = "any network that torch differentiates in these modes"

PEERS = (
    Peer("plain loop", "torch", "hessian", "probe", hessian_loop, any_network, ANYTHING),
    Peer("is_grads_batched", "torch", "hessian", "probe", hessian_batched, any_network, ANYTHING),
    Peer("vmap(jvp(grad))", "torch", "hessian", "probe", vmapped("hessian"), any_network, ANYTHING),
    Peer("plain loop, GGN", "torch", "ggn", "probe", ggn_loop, any_network, ANYTHING),
    Peer("vmap(jvp), GGN", "torch", "ggn", "probe", vmapped("ggn"), any_network, ANYTHING),
)
