"""The fixed table of networks: name -> function that makes a ``Case``. The families have a file each."""

from __future__ import annotations

from tests.dense.activation_networks import ACTIVATIONS
from tests.dense.case import Table
from tests.dense.layer_networks import LAYERS
from tests.dense.norm_networks import NORMS
from tests.dense.own_weight_networks import OWN_WEIGHTS
from tests.dense.sequence_networks import SEQUENCES
from tests.dense.sharing_networks import SHARINGS
from tests.dense.wiring_networks import WIRINGS

NETWORKS: Table = {
    **ACTIVATIONS,
    **LAYERS,
    **NORMS,
    **SEQUENCES,
    **SHARINGS,
    **OWN_WEIGHTS,
    **WIRINGS,
}
