"""The fixed table of networks: name -> function that makes a ``Case``. The families have a file each."""

from __future__ import annotations

from tests.estimators.dense.activation_networks import ACTIVATIONS
from tests.estimators.dense.case import Table
from tests.estimators.dense.layer_networks import LAYERS
from tests.estimators.dense.norm_networks import NORMS
from tests.estimators.dense.own_weight_networks import OWN_WEIGHTS
from tests.estimators.dense.sequence_networks import SEQUENCES
from tests.estimators.dense.sharing_networks import SHARINGS
from tests.estimators.dense.wiring_networks import WIRINGS

NETWORKS: Table = {
    **ACTIVATIONS,
    **LAYERS,
    **NORMS,
    **SEQUENCES,
    **SHARINGS,
    **OWN_WEIGHTS,
    **WIRINGS,
}
