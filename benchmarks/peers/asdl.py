"""asdfghjkl, imported as asdl: Hessian-vector products, and diagonals of the Fisher matrix.

Its Fisher diagonal squares the parts of a shared weight's gradient one by one: always for positions of a sequence, and for a
convolution's where that takes less memory (1.5 % too much on the digits). So perceptrons only. Its forward-mode products need
functorch's make_functional, which torch no longer has.
"""

from __future__ import annotations

import copy

import torch
from asdl import (
    FISHER_EXACT,
    FISHER_MC,
    SHAPE_DIAG,
    FisherConfig,
    HessianConfig,
    HessianMaker,
    ParamVector,
    get_fisher_maker,
)
from asdl.grad_maker import LOSS_CROSS_ENTROPY

from benchmarks.curvature_workloads import MLP, Workload
from benchmarks.peers.peer import Make, Peer, Trace, any_network, signs, trainable


def hessian_products(workload: Workload, k: int) -> Trace:
    params = trainable(workload.model)
    maker = HessianMaker(workload.model, HessianConfig())
    output = maker.setup_model_call(workload.model, workload.x)
    maker.setup_loss_call(workload.loss, output, workload.y)

    def trace() -> float:
        forms = [maker.hessian_quadratic_form(ParamVector(params, signs(params))) for _ in range(k)]
        return float(torch.stack(forms).mean())

    return trace


def fisher(fisher_type: str) -> Make:
    def make(workload: Workload, k: int) -> Trace:
        model = copy.deepcopy(workload.model)
        config = FisherConfig(
            fisher_type,
            [SHAPE_DIAG],
            loss_type=LOSS_CROSS_ENTROPY,
            n_mc_samples=k,
            data_size=len(workload.x),
        )
        maker = get_fisher_maker(model, config)
        maker.setup_model_call(model, workload.x)
        layers = [m for m in model.modules() if hasattr(m, "weight")]
        # It divides the sampled gradients by K before they are squared and added: 1 / K of the matrix.
        labels = k if fisher_type == FISHER_MC else 1

        def trace() -> float:
            maker.forward_and_backward()
            diagonals = [d for layer in layers for d in layer.fisher.diag.data]
            return labels * float(torch.stack([d.sum() for d in diagonals]).sum())

        return trace

    return make


def perceptrons(workload: Workload) -> bool:
    return workload.family == MLP


PACKAGE = "asdfghjkl"
KNOWN = "linear layers, each weight used once a sample"

PEERS = (
    Peer(
        "asdfghjkl HVP", PACKAGE, "hessian", "probe", hessian_products, any_network, "any network"
    ),
    Peer(
        "asdfghjkl Fisher, exact", PACKAGE, "ggn", "none", fisher(FISHER_EXACT), perceptrons, KNOWN
    ),
    Peer(
        "asdfghjkl Fisher, sampled", PACKAGE, "ggn", "draw", fisher(FISHER_MC), perceptrons, KNOWN
    ),
)
