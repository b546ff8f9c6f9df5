"""Reads what is private in nodes of autograd's graph, and calls the engine's own entry.

torch promises none of these names, nor the few that other files use of its optimizers, hooks and distributed tensors.
``tests/estimators/graph/test_torch_private.py`` goes through all of them, on every torch that is supported, and fails by name
where one is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.autograd.graph
from torch import Tensor
from torch.autograd.graph import Node

ACCUMULATE = "torch::autograd::AccumulateGrad"  # the name of a leaf's node
ERROR = (
    "torch::autograd::Error"  # that of the node where a once-differentiable function ends the graph
)

_engine_run_backward = getattr(torch.autograd.graph, "_engine_run_backward", None)

# The attributes that are read, by the name of the node: the arguments and results which the forward pass saved.
SAVED = {
    "AddBackward0": "alpha",
    "AddmmBackward0": "alpha beta mat1 mat2",
    "CatBackward0": "dim",
    "ConvolutionBackward0": "dilation groups input output_padding padding stride transposed weight",
    "CudnnBatchNormBackward0": "training",
    "CumsumBackward0": "dim",
    "EmbeddingBackward0": "indices padding_idx scale_grad_by_freq sparse",
    "LogSoftmaxBackward0": "dim result",
    "MeanBackward1": "dim keepdim",
    "MmBackward0": "self mat2",
    "MulBackward0": "other self",
    "NativeBatchNormBackward0": "eps input running_mean running_var training",
    "NativeGroupNormBackward0": "N group input result1 result2",
    "NativeLayerNormBackward0": "input normalized_shape result1 result2",
    "NllLossBackward0": "ignore_index reduction target total_weight weight",
    "PermuteBackward0": "dims",
    "PreluKernelBackward0": "self",
    "ReluBackward0": "result",
    "SafeSoftmaxBackward0": "dim",
    "SelectBackward0": "dim",
    "SigmoidBackward0": "result",
    "SliceBackward0": "dim",
    "SoftmaxBackward0": "dim",
    "SplitBackward0": "dim",
    "SplitWithSizesBackward0": "dim",
    "SqueezeBackward1": "dim",
    "SqueezeBackward4": "dim",
    "StackBackward0": "dim",
    "SubBackward0": "alpha",
    "SumBackward1": "dim keepdim",
    "TanhBackward0": "result",
    "TransposeBackward0": "dim0 dim1",
    "TransposeBackward1": "dim0 dim1",
    "UnbindBackward0": "dim",
    "UnsafeSplitBackward0": "dim",
    "UnsqueezeBackward0": "dim",
    "UnsqueezeBackward1": "dim",
}


def saved(node: Any, name: str) -> Any:
    """Returns what a node's forward pass saved under ``name``; torch raises an error if a tensor was changed since."""
    return getattr(node, f"_saved_{name}")


def signed(value: int) -> int:
    """Converts a dimension or index that a node saved: torch shows a negative one as an unsigned 64-bit number."""
    return value if value < 1 << 63 else value - (1 << 64)


_settings_of: dict[str, list[str]] = {}


def settings(name: str, node: Node) -> list[Any]:
    """Returns the settings that a node called ``name`` saved, such as dimensions: neither tensors nor symbolic sizes."""
    known = _settings_of.get(name)
    if known is None:
        known = [
            attribute
            for attribute in dir(node)
            if attribute.startswith("_saved_")
            and "_sym_" not in attribute
            and not isinstance(getattr(node, attribute), Tensor)
        ]
        _settings_of[name] = known
    return [getattr(node, attribute) for attribute in known]


def outputs_of(node: Node) -> Sequence[Any]:
    """Returns shape, dtype and device of each output of a node's forward pass, as attributes."""
    return node._input_metadata


def output_of(node: Node, output: int = 0) -> Any:
    """Returns what ``outputs_of`` has of one output."""
    return node._input_metadata[output]


def leaf_of(node: Node) -> Tensor | None:
    """Returns the tensor whose gradient a node accumulates; None of other nodes."""
    return getattr(node, "variable", None)


def run_backward(
    outputs: Sequence[Any], inputs: Sequence[Any], vectors: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Runs ``torch.autograd.grad`` with ``retain_graph`` and ``allow_unused``, without its checks of ``vectors``.

    The checks cost 20 us a call, 7 % of a probe on a small network, and vectors made here are right. Where the engine's entry
    is missing, the public function does the work.
    """
    if _engine_run_backward is None:
        return torch.autograd.grad(outputs, inputs, vectors, retain_graph=True, allow_unused=True)
    found: Sequence[Tensor | None] = _engine_run_backward(
        tuple(outputs),
        tuple(vectors),
        True,  # keep the graph
        False,  # make no graph of this backward pass
        tuple(inputs),
        allow_unreachable=True,
        accumulate_grad=False,
    )
    return found
