"""Random small networks for hypothesis: rows, signals or images through a few blocks, then one linear layer and a loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.estimators.dense.case import Case, build, labels
from tests.estimators.dense.losses import WEIGHTS
from tests.estimators.dense.wiring_networks import Residual
from tests.problems.problem import rand

MAX_PARAMETERS = 150

CORNERS: list[Callable[[], nn.Module]] = [
    nn.ReLU,
    lambda: nn.ReLU(inplace=True),
    lambda: nn.LeakyReLU(0.2),
    nn.PReLU,
    nn.Hardtanh,
]
SMOOTH: list[Callable[[], nn.Module]] = [
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    nn.SiLU,
    lambda: nn.Softplus(beta=2),
    nn.ELU,
    nn.Mish,
]
# Loss and targets of N rows of three outputs.
LOSSES: list[Callable[[int], tuple[Callable[[Tensor, Tensor], Tensor], Tensor]]] = [
    lambda n: (F.cross_entropy, labels(n)),
    lambda n: (nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1), labels(n)),
    lambda n: (nn.CrossEntropyLoss(reduction="sum"), labels(n)),
    lambda n: (F.mse_loss, rand(n, 3)),
    lambda n: (F.binary_cross_entropy_with_logits, (rand(n, 3) > 0).double()),
    lambda n: (lambda out, y: ((out - y) ** 4).mean(), rand(n, 3)),
    lambda n: (lambda out, y: (out - y).sin().sum(), rand(n, 3)),
]

Draw = Callable[[st.SearchStrategy], int]


def sizes(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


def weighted(draw: Draw, h: Tensor, *, same: bool = False) -> nn.Module:
    """A layer with weights for input ``h`` [N, features] or [N, channels, ...]; ``same``: output of the shape of ``h``."""
    width, bias = h.shape[1], draw(st.booleans())
    if h.dim() == 2:
        return nn.Linear(width, width if same else draw(sizes(1, 4)), bias=bias)
    groups = draw(st.sampled_from([g for g in (1, 2, 3) if width % g == 0]))
    channels = width if same else groups * draw(sizes(1, 3 // groups))
    options = {"groups": groups, "bias": bias}
    kind, transposed = {3: (nn.Conv1d, nn.ConvTranspose1d), 4: (nn.Conv2d, nn.ConvTranspose2d)}[
        h.dim()
    ]
    if same:
        return kind(width, width, 3, padding=1, **options)
    kernel, stride = draw(sizes(1, 3)), draw(sizes(1, 2))
    if min(h.shape[2:]) <= 3 and draw(st.booleans()):
        output_padding = draw(sizes(0, stride - 1))
        return transposed(
            width, channels, kernel, stride=stride, output_padding=output_padding, **options
        )
    dilation, padding = draw(sizes(1, 2)), draw(sizes(0, 1))
    assume(dilation * (kernel - 1) < min(h.shape[2:]) + 2 * padding)
    return kind(
        width, channels, kernel, stride=stride, padding=padding, dilation=dilation, **options
    )


def eval_norm(h: Tensor) -> nn.Module:
    """Batch norm as after some training."""
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[h.dim()](h.shape[1])
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm.eval()


def pooling(draw: Draw, h: Tensor) -> nn.Module:
    average, largest = {3: (nn.AvgPool1d, nn.MaxPool1d), 4: (nn.AvgPool2d, nn.MaxPool2d)}[h.dim()]
    assume(min(h.shape[2:]) >= 2)
    return draw(st.sampled_from([average, largest]))(2, stride=draw(sizes(1, 2)))


def block(draw: Draw, h: Tensor, activations: list[Callable[[], nn.Module]]) -> nn.Module:
    """One step for input ``h``."""
    kinds = ["layer", "layer", "residual", "norm", "dropout"] + ["pooling"] * (h.dim() > 2)
    kind = draw(st.sampled_from(kinds))
    if kind == "layer":
        return nn.Sequential(weighted(draw, h), draw(st.sampled_from(activations))())
    if kind == "residual":
        activation = draw(st.sampled_from(activations))()
        return Residual(nn.Sequential(weighted(draw, h, same=True), activation))
    if kind == "norm":
        return eval_norm(h)
    if kind == "dropout":
        return nn.Dropout(draw(st.sampled_from([0.2, 0.5])))
    return pooling(draw, h)


@st.composite
def architectures(draw: Draw) -> Case:
    """Networks that every method in activation space must serve, for the GGN and, where it has one, the Hessian."""
    smooth = draw(st.booleans())
    seed = draw(st.integers(0, 1000))
    shape = draw(st.sampled_from([(3,), (4,), (2, 5), (1, 6), (1, 4, 4), (2, 4, 3)]))
    rows, depth = draw(sizes(1, 4)), draw(sizes(0, 3))

    def make() -> Case:
        inputs = rand(rows, *shape)
        h = inputs.float()
        # One smooth activation at the start makes sure of it; corners may follow.
        first = SMOOTH if smooth else CORNERS
        layers = [weighted(draw, h), draw(st.sampled_from(first))()]
        # A probe of shapes must not change statistics or draw masks.
        with torch.no_grad():
            h = nn.Sequential(*layers)(h)
            for _ in range(depth):
                layers.append(block(draw, h, SMOOTH + CORNERS if smooth else CORNERS))
                h = layers[-1](h)
        model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(h[0].numel(), 3))
        assume(sum(p.numel() for p in model.parameters()) <= MAX_PARAMETERS)
        loss_fn, targets = draw(st.sampled_from(LOSSES))(rows)
        return Case(
            model,
            loss_fn,
            inputs,
            targets,
            piecewise_linear=not smooth,
            activation_hessian=True,
        )

    return build(make, seed)
