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


def _nodes(operations: str, variants: str = "0") -> frozenset[str]:
    """Returns the names of the nodes of some operations, of which torch numbers the variants."""
    return frozenset(f"{name}Backward{k}" for name in operations.split() for k in variants)


# Operations that keep the numbers and change shape, order or type; they make another view of a parameter.
SAME_ORDER = _nodes("Alias ReshapeAlias Squeeze ToCopy UnsafeView Unsqueeze View", "012")
VIEWS = _nodes("ReshapeAlias UnsafeView View")
TRANSPOSITIONS = _nodes("Permute T Transpose") | {"TransposeBackward1"}
RELABELLINGS = SAME_ORDER | _nodes("Clone Contiguous Permute T Transpose", "012")

_LINEAR = RELABELLINGS | _nodes(
    """
    AdaptiveAvgPool2D AdaptiveAvgPool3D Add AsStrided AvgPool2D AvgPool3D Cat Col2Im ConstantPadNd
    Copy Cumsum Diagonal Expand Flip Gather Im2Col Index IndexSelect MaskedFill MaskedSelect Mean
    MkldnnAdaptiveAvgPool2D Narrow Neg PixelShuffle PixelUnshuffle
    ReflectionPad1D ReflectionPad2D ReflectionPad3D Repeat
    ReplicationPad1D ReplicationPad2D ReplicationPad3D Roll Rsub Select Slice Split SplitWithSizes
    Stack Sub Sum Tril Triu Unbind Unfold UnsafeSplit
    UpsampleBicubic2D UpsampleBilinear2D UpsampleLinear1D UpsampleNearest1D UpsampleNearest2D
    UpsampleNearest3D UpsampleTrilinear3D Where
    """,
    "012",
)

# Products: linear in one factor while the other is a constant.
_BILINEAR = _nodes(
    "Addcmul Addmm Addmv Baddbmm Bmm Convolution Dot Linear Mm Mul Mv NativeDropout"
) | _nodes("Mul", "1")

_PIECEWISE = _nodes(
    """
    Abs AdaptiveMaxPool2D AdaptiveMaxPool3D Amax Amin Clamp ClampMax ClampMin
    Hardshrink Hardsigmoid Hardtanh LeakyRelu Max Maximum MaxPool2DWithIndices MaxPool3DWithIndices
    Min Minimum MkldnnMaxPool2D Relu RreluWithNoise Softshrink Sort Threshold Topk
    """
) | _nodes("Clamp Max Min", "1")

_SMOOTH = _nodes(
    """
    Celu Cos Elu Erf Exp Expm1 Gelu Hardswish Log Log1P LogSigmoid Mish Pow Reciprocal Rsqrt
    Sigmoid Silu Sin Softplus Sqrt Tanh
    """
) | _nodes("Elu", "1")


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


# What multiplies its cotangent by a slope, element by element: smooth operations, and of the others those that stand here.
_ELEMENTWISE = (
    _SMOOTH
    | _nodes("Abs ClampMax ClampMin Hardsigmoid Hardtanh LeakyRelu Mul Neg Relu Threshold")
    | _nodes("Clamp", "1")
)
# The last ones rule the Hessian in activation space out, but their nodes can be called.
_CALLABLE = (
    _LINEAR
    | _BILINEAR
    | _PIECEWISE
    | _SMOOTH
    | _nodes("Div NativeBatchNorm NativeLayerNorm PreluKernel Softmax")
)
_SEVERAL_OUTPUTS = _nodes("Max Min Sort Split SplitWithSizes Topk Unbind UnsafeSplit", "01")

# Losses, as the head of a graph.
LOG_SOFTMAX = "LogSoftmaxBackward0"
NLL_LOSS = "NllLossBackward0"
LOSSES_OF_LOG_P = _nodes("NllLoss NllLoss2D")
ELEMENTWISE_LOSSES = _nodes(
    "BinaryCrossEntropy BinaryCrossEntropyWithLogits HuberLoss MseLoss SmoothL1Loss SoftMarginLoss"
)

BATCH_NORMS = _nodes("CudnnBatchNorm NativeBatchNorm")
NORMS = _nodes("NativeBatchNorm NativeGroupNorm NativeLayerNorm")

# Operations that keep the examples along the first axis apart, whatever the values.
BY_EXAMPLE = _nodes(
    """
    AdaptiveAvgPool2D AdaptiveMaxPool2D AvgPool2D MaxPool2DWithIndices NativeBatchNorm NativeGroupNorm
    """
)
# Operations along one axis ``dim``, which keep what lies along the others apart; some take it away or add it.
ALONG_AN_AXIS = _nodes(
    """
    Cat Cumsum LogSoftmax SafeSoftmax Select Slice Softmax Split SplitWithSizes Stack Unbind
    UnsafeSplit Unsqueeze
    """
) | {"SqueezeBackward1", "SqueezeBackward4", "UnsqueezeBackward1"}
# Operations over axes ``dim``, all of them where that is empty, which stay with ``keepdim``.
REDUCTIONS = _nodes("Mean Sum", "1")
_BROADCAST = _nodes(
    """
    Add Alias Clone Contiguous Copy Div Expand MaskedFill NativeDropout PreluKernel Rsub Sub ToCopy
    Where
    """
) | _nodes("Add Div Mul Sub", "1")

# Nodes that stand for something else than an operation: parts of their names.
HOOK = "BackwardHookFunction"  # a full backward hook of a module
COMPILED = "CompiledFunction"


def is_fused_attention(name: str) -> bool:
    """Tells whether a node is torch's own scaled dot product attention, of which each device has several."""
    return name.startswith("ScaledDotProduct") and name.endswith("Backward0")


def is_elementwise(name: str) -> bool:
    """Tells whether a node of one live input multiplies its cotangent by a slope, element by element, broadcasting aside."""
    return name in _ELEMENTWISE


def is_broadcast(name: str) -> bool:
    """Tells whether a node's output depends element by element on its inputs, which are aligned at the last axes."""
    return name in _ELEMENTWISE or name in _BROADCAST


def is_callable(name: str, inputs: Sequence[tuple[int, int]], needed: set[int]) -> bool:
    """Tells whether a node may be called by hand, with one cotangent for its only output."""
    if name in _SEVERAL_OUTPUTS or any(output for below, output in inputs if below in needed):
        return False
    return name in _CALLABLE
