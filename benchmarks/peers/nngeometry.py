"""NNGeometry: the Fisher matrix of a classifier, which is its GGN, layer by layer."""

from __future__ import annotations

import copy
from typing import Any

from nngeometry.layercollection import LayerCollection
from nngeometry.metrics import FIM, FIM_MonteCarlo
from nngeometry.object import PMatDiag, PMatImplicit

from benchmarks.curvature_workloads import Workload
from benchmarks.peers.peer import Make, Peer, Trace, stacks


def exact(representation: Any) -> Make:
    def make(workload: Workload, k: int) -> Trace:
        setting = _setting(workload)
        return lambda: float(FIM(representation=representation, **setting).trace())

    return make


def sampled(workload: Workload, k: int) -> Trace:
    """``k`` labels a sample."""
    setting = _setting(workload)
    return lambda: float(FIM_MonteCarlo(representation=PMatImplicit, trials=k, **setting).trace())


def _setting(workload: Workload) -> dict[str, Any]:
    model = copy.deepcopy(workload.model)
    # It marks the batch as requiring a gradient. As the one dataset item of a loader the batch is not collated anew.
    batch = (workload.x.clone(), workload.y)
    return {
        "model": model,
        "loader": batch,
        "variant": "classif_logits",
        "layer_collection": LayerCollection.from_model(model),
    }


def hesitant_stacks(workload: Workload) -> bool:
    """Its factor of diag(p) - p p' takes roots of 1 - p_1 - ... - p_c, which rounding makes negative once a network is sure of
    a class: nan."""
    return stacks(workload) and not workload.trained


PACKAGE = "nngeometry"
KNOWN = "linear, convolution and norm layers without a sequence dimension; no embeddings"

PEERS = (
    Peer(
        "NNGeometry PMatImplicit",
        PACKAGE,
        "ggn",
        "none",
        exact(PMatImplicit),
        hesitant_stacks,
        KNOWN,
    ),
    Peer("NNGeometry PMatDiag", PACKAGE, "ggn", "none", exact(PMatDiag), hesitant_stacks, KNOWN),
    Peer("NNGeometry, sampled labels", PACKAGE, "ggn", "draw", sampled, stacks, KNOWN),
)
