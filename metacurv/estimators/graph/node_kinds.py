"""Kinds of autograd's nodes, by name: how the operation of each depends on its inputs.

The Hessian in activation space needs every operation above a layer to be linear, linear in pieces, or smooth and elementwise.
A node in none of these lists counts as "coupled": safe for the Gauss-Newton matrix, which needs first derivatives only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch.autograd.graph import Node

from metacurv.estimators.graph.torch_private import saved

Kind = Literal["linear", "piecewise", "smooth", "coupled"]

# Operations that keep the numbers and change shape, order or type; they make another view of a parameter.
RELABELLINGS = frozenset(
    f"{name}Backward{variant}"
    for name in (
        "Alias",
        "Clone",
        "Contiguous",
        "Permute",
        "ReshapeAlias",
        "Squeeze",
        "T",
        "ToCopy",
        "Transpose",
        "UnsafeView",
        "Unsqueeze",
        "View",
    )
    for variant in range(3)
)

_LINEAR = RELABELLINGS | {
    f"{name}Backward{variant}"
    for name in (
        "AdaptiveAvgPool2D",
        "AdaptiveAvgPool3D",
        "AsStrided",
        "AvgPool2D",
        "AvgPool3D",
        "Cat",
        "Col2Im",
        "ConstantPadNd",
        "Copy",
        "Cumsum",
        "Diagonal",
        "Expand",
        "Flip",
        "Gather",
        "Im2Col",
        "Index",
        "IndexSelect",
        "MaskedFill",
        "MaskedSelect",
        "Mean",
        "MkldnnAdaptiveAvgPool2D",
        "Narrow",
        "Neg",
        "PixelShuffle",
        "PixelUnshuffle",
        "ReflectionPad1D",
        "ReflectionPad2D",
        "ReflectionPad3D",
        "Repeat",
        "ReplicationPad1D",
        "ReplicationPad2D",
        "ReplicationPad3D",
        "Roll",
        "Rsub",
        "Select",
        "Slice",
        "Split",
        "SplitWithSizes",
        "Stack",
        "Sub",
        "Sum",
        "Tril",
        "Triu",
        "Unbind",
        "Unfold",
        "UnsafeSplit",
        "UpsampleBicubic2D",
        "UpsampleBilinear2D",
        "UpsampleLinear1D",
        "UpsampleNearest1D",
        "UpsampleNearest2D",
        "UpsampleNearest3D",
        "UpsampleTrilinear3D",
        "Where",
        "Add",
    )
    for variant in range(3)
}

# Products: linear in one factor while the other is a constant.
_BILINEAR = frozenset(
    {
        "AddcmulBackward0",
        "AddmmBackward0",
        "AddmvBackward0",
        "BaddbmmBackward0",
        "BmmBackward0",
        "ConvolutionBackward0",
        "DotBackward0",
        "LinearBackward0",
        "MmBackward0",
        "MulBackward0",
        "MulBackward1",
        "MvBackward0",
        "NativeDropoutBackward0",
    }
)

_PIECEWISE = frozenset(
    {
        "AbsBackward0",
        "AdaptiveMaxPool2DBackward0",
        "AdaptiveMaxPool3DBackward0",
        "AmaxBackward0",
        "AminBackward0",
        "ClampBackward0",
        "ClampBackward1",
        "ClampMaxBackward0",
        "ClampMinBackward0",
        "HardshrinkBackward0",
        "HardsigmoidBackward0",
        "HardtanhBackward0",
        "LeakyReluBackward0",
        "MaxBackward0",
        "MaxBackward1",
        "MaximumBackward0",
        "MaxPool2DWithIndicesBackward0",
        "MaxPool3DWithIndicesBackward0",
        "MinBackward0",
        "MinBackward1",
        "MinimumBackward0",
        "MkldnnMaxPool2DBackward0",
        "ReluBackward0",
        "RreluWithNoiseBackward0",
        "SoftshrinkBackward0",
        "SortBackward0",
        "ThresholdBackward0",
        "TopkBackward0",
    }
)

_SMOOTH = frozenset(
    {
        "CeluBackward0",
        "CosBackward0",
        "EluBackward0",
        "EluBackward1",
        "ErfBackward0",
        "ExpBackward0",
        "Expm1Backward0",
        "GeluBackward0",
        "HardswishBackward0",
        "LogBackward0",
        "Log1PBackward0",
        "LogSigmoidBackward0",
        "MishBackward0",
        "PowBackward0",
        "ReciprocalBackward0",
        "RsqrtBackward0",
        "SigmoidBackward0",
        "SiluBackward0",
        "SinBackward0",
        "SoftplusBackward0",
        "SqrtBackward0",
        "TanhBackward0",
    }
)


def kind_of(name: str, node: Node, live: Sequence[int]) -> Kind:
    """Tells how a node depends on its inputs at positions ``live``; the others (a layer's own parameters too) are constants."""
    if name in _LINEAR or (name in _BILINEAR and len(live) == 1):
        return "linear"
    if name in ("DivBackward0", "PreluKernelBackward0") and list(live) == [0]:
        return "linear" if name == "DivBackward0" else "piecewise"
    if name == "NativeBatchNormBackward0" and list(live) == [0] and not saved(node, "training"):
        return "linear"
    if name in _PIECEWISE:
        return "piecewise"
    return "smooth" if name in _SMOOTH else "coupled"


_ELEMENTWISE = _SMOOTH | {
    "AbsBackward0",
    "ClampBackward1",
    "ClampMaxBackward0",
    "ClampMinBackward0",
    "HardsigmoidBackward0",
    "HardtanhBackward0",
    "LeakyReluBackward0",
    "MulBackward0",
    "NegBackward0",
    "ReluBackward0",
    "ThresholdBackward0",
}
# Operations that rule the Hessian in activation space out, but whose nodes can be called.
_CALLABLE_AND_COUPLED = frozenset(
    {
        "DivBackward0",
        "NativeBatchNormBackward0",
        "NativeLayerNormBackward0",
        "PreluKernelBackward0",
        "SoftmaxBackward0",
    }
)
_SEVERAL_OUTPUTS = (
    "Split",
    "SplitWithSizes",
    "UnsafeSplit",
    "Unbind",
    "Sort",
    "Topk",
    "Max",
    "Min",
)


# Losses, as the head of a graph.
LOG_SOFTMAX = "LogSoftmaxBackward0"
LOSSES_OF_LOG_P = frozenset({"NllLossBackward0", "NllLoss2DBackward0"})
ELEMENTWISE_LOSSES = frozenset(
    {
        "BinaryCrossEntropyBackward0",
        "BinaryCrossEntropyWithLogitsBackward0",
        "HuberLossBackward0",
        "MseLossBackward0",
        "SmoothL1LossBackward0",
        "SoftMarginLossBackward0",
    }
)

# Views of a parameter in the same order, and in the order of a transposed matrix.
VIEWS = frozenset({"ReshapeAliasBackward0", "UnsafeViewBackward0", "ViewBackward0"})
SAME_ORDER = frozenset(
    f"{name}Backward{variant}"
    for name in ("Alias", "ReshapeAlias", "Squeeze", "ToCopy", "UnsafeView", "Unsqueeze", "View")
    for variant in range(3)
)
TRANSPOSITIONS = frozenset({"TBackward0", "TransposeBackward0", "PermuteBackward0"})

BATCH_NORMS = frozenset({"CudnnBatchNormBackward0", "NativeBatchNormBackward0"})
NORMS = frozenset(
    {"NativeBatchNormBackward0", "NativeGroupNormBackward0", "NativeLayerNormBackward0"}
)

# Operations that keep the examples along the first axis apart, whatever the values.
BY_SAMPLE = frozenset(
    {
        "AdaptiveAvgPool2DBackward0",
        "AdaptiveMaxPool2DBackward0",
        "AvgPool2DBackward0",
        "CloneBackward0",
        "MaxPool2DWithIndicesBackward0",
        "MeanBackward1",
        "NativeBatchNormBackward0",
        "NativeDropoutBackward0",
        "NativeGroupNormBackward0",
        "PreluKernelBackward0",
        "SumBackward1",
        "ToCopyBackward0",
    }
)

# Nodes that stand for something else than an operation: parts of their names.
HOOK = "BackwardHookFunction"  # a full backward hook of a module
FUSED_ATTENTION = "ScaledDotProduct"
COMPILED = "CompiledFunction"


def is_elementwise(name: str) -> bool:
    """Tells whether a node of one live input multiplies its cotangent by a slope, element by element, broadcasting aside."""
    return name in _ELEMENTWISE


def is_callable(name: str, inputs: Sequence[tuple[int, int]], needed: set[int]) -> bool:
    """Tells whether a node may be called by hand, with one cotangent for its only output."""
    if name.removesuffix("Backward0").removesuffix("Backward1") in _SEVERAL_OUTPUTS:
        return False
    if any(output for below, output in inputs if below in needed):
        return False  # another output of a node than its first
    return name in _LINEAR | _BILINEAR | _PIECEWISE | _SMOOTH | _CALLABLE_AND_COUPLED
