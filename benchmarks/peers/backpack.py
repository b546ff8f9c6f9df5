"""BackPACK: diagonals inside one backward pass, exact or by sampled labels, and matrix-vector products."""

from __future__ import annotations

import copy
from collections.abc import Callable

import backpack
import torch
from backpack.extensions import DiagGGNExact, DiagGGNMC, DiagHessian
from backpack.hessianfree.ggnvp import ggn_vector_product
from backpack.hessianfree.hvp import hessian_vector_product

from benchmarks.curvature_workloads import Workload
from benchmarks.peers.peer import Make, Peer, Trace, any_network, signs, stacks, total, trainable


def diagonal(extension: Callable[[int], object], attribute: str) -> Make:
    """Sums the diagonal that ``extension``, made from K, leaves at the parameters."""

    def make(workload: Workload, k: int) -> Trace:
        model = backpack.extend(copy.deepcopy(workload.model))
        loss_function = backpack.extend(copy.deepcopy(workload.loss))
        params = trainable(model)

        def trace() -> float:
            loss = loss_function(model(workload.x), workload.y)
            with backpack.backpack(extension(k)):
                loss.backward()
            found = float(torch.stack([getattr(p, attribute).sum() for p in params]).sum())
            for p in params:
                p.grad = None
            return found

        return trace

    return make


def hessian_products(workload: Workload, k: int) -> Trace:
    params = trainable(workload.model)

    def trace() -> float:
        loss = workload.loss(workload.model(workload.x), workload.y)
        gradients = torch.autograd.grad(loss, params, create_graph=True)
        found = []
        for _ in range(k):
            vs = signs(params)
            products = hessian_vector_product(loss, params, vs, grad_params=gradients)
            found.append(total(vs, products))
        return float(torch.stack(found).mean())

    return trace


def ggn_products(workload: Workload, k: int) -> Trace:
    params = trainable(workload.model)

    def trace() -> float:
        output = workload.model(workload.x)
        loss = workload.loss(output, workload.y)
        found = []
        for _ in range(k):
            vs = signs(params)
            found.append(total(vs, ggn_vector_product(loss, output, workload.model, vs)))
        return float(torch.stack(found).mean())

    return trace


PACKAGE = "backpack-for-pytorch"
KNOWN = "stacks of modules that it knows, without LayerNorm's, attention's or GELU's"

PEERS = (
    Peer(
        "BackPACK DiagHessian",
        PACKAGE,
        "hessian",
        "none",
        diagonal(lambda k: DiagHessian(), "diag_h"),
        stacks,
        KNOWN,
    ),
    Peer(
        "BackPACK DiagGGNExact",
        PACKAGE,
        "ggn",
        "none",
        diagonal(lambda k: DiagGGNExact(), "diag_ggn_exact"),
        stacks,
        KNOWN,
    ),
    Peer(
        "BackPACK DiagGGNMC",
        PACKAGE,
        "ggn",
        "draw",
        diagonal(lambda k: DiagGGNMC(mc_samples=k), "diag_ggn_mc"),
        stacks,
        KNOWN,
    ),
    Peer("BackPACK HVP", PACKAGE, "hessian", "probe", hessian_products, any_network, "any network"),
    Peer("BackPACK GGN product", PACKAGE, "ggn", "probe", ggn_products, any_network, "any network"),
)
