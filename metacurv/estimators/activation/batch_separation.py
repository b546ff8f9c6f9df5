"""Operations that keep the examples along the first axis apart, whatever the values, so that one look at them holds for good.

The lists name what is known to be safe. Anything else, such as a permutation, an index, a mask or a product with a constant
from the left, may pass something between examples in one call that it did not in another, so it is looked at every time.
"""

from __future__ import annotations

from typing import Any

from metacurv.estimators.graph.node_kinds import BY_EXAMPLE, VIEWS, is_elementwise
from metacurv.estimators.graph.torch_private import saved, signed
from metacurv.estimators.graph.walk import Walk


def keeps_examples(walk: Walk, node: int, examples: int) -> bool:
    """Tells whether a node passes nothing between examples, each a stretch along the first axis of the node's inputs."""
    name, shape = walk.names[node], walk.shape(node)
    at: Any = walk.nodes[node]
    inputs = [below for below, _ in walk.inputs[node]]
    if name in ("AddmmBackward0", "MmBackward0", "ConvolutionBackward0"):
        # The left factor holds rows, or images; the right one must hold weights only.
        left, right = (0, 1) if name != "AddmmBackward0" else (1, 2)
        is_weight = inputs[right] < 0 or _is_matrix_of_weights(walk, inputs[right])
        return is_weight and (inputs[left] < 0 or walk.shape(inputs[left])[:1] == shape[:1])
    if name in VIEWS:
        before = walk.shape(inputs[0])
        # Rows of one example may be merged; with fewer rows than examples, several examples share one.
        return bool(before and shape) and before[0] % examples == 0 and shape[0] % examples == 0
    if name == "EmbeddingBackward0":
        # An index into activations may pick rows of other examples.
        return _is_matrix_of_weights(walk, inputs[0])
    if name in ("AddBackward0", "SubBackward0") or is_elementwise(name):
        return all(
            below < 0 or walk.shape(below) == shape or _is_matrix_of_weights(walk, below)
            for below in inputs
        )
    if name == "NativeLayerNormBackward0":
        return len(saved(at, "normalized_shape")) < len(shape)
    if name in ("MeanBackward1", "SumBackward1"):
        axes = len(walk.shape(inputs[0]))
        dims = saved(at, "dim") or ()
        return bool(dims) and all(signed(d) % axes for d in dims)
    return name in BY_EXAMPLE


def _is_matrix_of_weights(walk: Walk, node: int) -> bool:
    """Tells whether a node is a parameter, or another view of one."""
    while walk.names[node] in ("TBackward0", "ViewBackward0", "ToCopyBackward0"):
        node = walk.inputs[node][0][0]
    return not walk.inputs[node]
