"""Every kind of layer with weights: linear, convolutions and their transposes, embeddings; pooling on the way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.estimators.dense.case import (
    Case,
    Lambda,
    Table,
    by_token,
    elementwise,
    labels,
    piecewise,
)
from tests.problems.problem import rand

LAYERS: Table = {}


def linear_without_bias() -> Case:
    layers = [nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)]
    return piecewise(nn.Sequential(*layers), rand(6, 3))


def linear_with_and_without_bias() -> Case:
    layers = [nn.Linear(3, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)]
    return elementwise(nn.Sequential(*layers), rand(6, 3))


def one_linear_layer() -> Case:
    return piecewise(nn.Sequential(nn.Linear(4, 3)), rand(6, 4))


def a_bare_linear_layer() -> Case:
    """The model is the layer: its parameters have no dot in their names."""
    return piecewise(nn.Linear(4, 3), rand(6, 4), may_refuse=True)


def over_a_sequence(activation: Callable[[], nn.Module], family: Callable[..., Case]) -> Case:
    layers = nn.Sequential(nn.Linear(3, 4), activation(), nn.Linear(4, 3))
    return family(layers, rand(3, 4, 3), by_token, labels(3, 4))


def over_two_sequence_dimensions() -> Case:
    layers = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 3))
    return elementwise(layers, rand(2, 2, 2, 3), by_token, labels(2, 2, 2))


def sequence_then_mean() -> Case:
    """The tokens of a sample meet again in one output."""
    layers = [nn.Linear(3, 4), nn.Tanh(), Lambda(lambda h: h.mean(1)), nn.Linear(4, 3)]
    return elementwise(nn.Sequential(*layers), rand(5, 4, 3))


LAYERS |= {
    "linear_without_bias": linear_without_bias,
    "linear_with_and_without_bias": linear_with_and_without_bias,
    "one_linear_layer": one_linear_layer,
    "a_bare_linear_layer": a_bare_linear_layer,
    "sequence_relu": lambda: over_a_sequence(nn.ReLU, piecewise),
    "sequence_tanh": lambda: over_a_sequence(nn.Tanh, elementwise),
    "over_two_sequence_dimensions": over_two_sequence_dimensions,
    "sequence_then_mean": sequence_then_mean,
}


def convolution(
    layer: nn.Module, inputs: Tensor, activation: Callable[[], nn.Module] = nn.ReLU
) -> Case:
    """The layer under test, an activation, three numbers per channel left of it, and a linear layer."""
    channels = layer.out_channels
    dims = inputs.dim() - 2
    pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dims]
    size = (3, 1, 1)[:dims]
    model = nn.Sequential(layer, activation(), pool(size), nn.Flatten(), nn.Linear(3 * channels, 3))
    family = piecewise if activation is nn.ReLU else elementwise
    return family(model, inputs)


ONE, TWO, THREE = (4, 2, 8), (4, 2, 5, 6), (3, 2, 4, 3, 4)
# name -> kind of layer, its arguments, shape of its input
CONVOLUTIONS = {
    "conv1d": (nn.Conv1d, (2, 3, 3), {}, ONE),
    "conv1d_stride_padding_dilation": (
        nn.Conv1d,
        (2, 3, 3),
        {"stride": 2, "padding": 1, "dilation": 2},
        ONE,
    ),
    "conv1d_groups": (nn.Conv1d, (2, 4, 3), {"groups": 2, "padding": 1}, ONE),
    "conv1d_depthwise_without_bias": (nn.Conv1d, (2, 2, 3), {"groups": 2, "bias": False}, ONE),
    "conv1d_circular": (nn.Conv1d, (2, 3, 3), {"padding": 1, "padding_mode": "circular"}, ONE),
    "conv1d_same": (nn.Conv1d, (2, 3, 4), {"padding": "same", "dilation": 2}, ONE),
    "conv2d": (nn.Conv2d, (2, 3, 2), {}, TWO),
    "conv2d_stride_padding_dilation": (
        nn.Conv2d,
        (2, 3, (3, 2)),
        {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
        TWO,
    ),
    "conv2d_groups": (nn.Conv2d, (2, 4, 2), {"groups": 2, "stride": 2}, TWO),
    "conv2d_reflect": (nn.Conv2d, (2, 3, 3), {"padding": 1, "padding_mode": "reflect"}, TWO),
    "conv3d": (nn.Conv3d, (2, 2, 2), {}, THREE),
    "conv3d_stride_padding_groups": (
        nn.Conv3d,
        (2, 4, 2),
        {"stride": 2, "padding": 1, "groups": 2},
        THREE,
    ),
    "conv_transpose1d": (nn.ConvTranspose1d, (2, 3, 3), {}, ONE),
    "conv_transpose1d_stride_output_padding_groups": (
        nn.ConvTranspose1d,
        (2, 4, 3),
        {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2},
        ONE,
    ),
    "conv_transpose2d": (nn.ConvTranspose2d, (2, 3, 2), {"bias": False}, TWO),
    "conv_transpose2d_stride_output_padding_groups": (
        nn.ConvTranspose2d,
        (2, 4, 2),
        {"stride": 3, "output_padding": (1, 2), "dilation": (2, 1), "groups": 2},
        TWO,
    ),
    "conv_transpose3d_stride": (nn.ConvTranspose3d, (2, 2, 2), {"stride": 2, "padding": 1}, THREE),
}
for _name, (_kind, _sizes, _options, _shape) in CONVOLUTIONS.items():
    LAYERS[f"{_name}_relu"] = lambda kind=_kind, sizes=_sizes, options=_options, shape=_shape: (
        convolution(kind(*sizes, **options), rand(*shape))
    )
    if _name.endswith(("1d", "2d", "groups")):
        LAYERS[f"{_name}_gelu"] = lambda kind=_kind, sizes=_sizes, options=_options, shape=_shape: (
            convolution(kind(*sizes, **options), rand(*shape), nn.GELU)
        )


def two_convolutions(pool: nn.Module, size: int = 7) -> Case:
    """``pool``: from [size - 1, size - 1] to [3, 3]."""
    layers = [nn.Conv2d(1, 2, 2), nn.ReLU(), pool, nn.Conv2d(2, 3, 2), nn.ReLU()]
    return piecewise(nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 3)), rand(4, 1, size, size))


def classes_in_dimension_1() -> Case:
    """Segmentation: the last layer is a convolution, and its channels are the classes."""
    layers = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Conv2d(2, 3, 2))
    return elementwise(layers, rand(2, 1, 4, 4), targets=labels(2, 2, 2))


LAYERS |= {
    "average_pool": lambda: two_convolutions(nn.AvgPool2d(2)),
    "max_pool": lambda: two_convolutions(nn.MaxPool2d(2)),
    "overlapping_average_pool": lambda: two_convolutions(nn.AvgPool2d(3, stride=2, padding=1)),
    "adaptive_max_pool": lambda: two_convolutions(nn.AdaptiveMaxPool2d(3), size=8),
    "adaptive_average_pool": lambda: two_convolutions(nn.AdaptiveAvgPool2d(3), size=9),
    "overlapping_max_pool": lambda: two_convolutions(nn.MaxPool2d(3, stride=2, padding=1)),
    "resampling": lambda: two_convolutions(nn.Upsample(scale_factor=0.5, mode="nearest")),
    "classes_in_dimension_1": classes_in_dimension_1,
}


TOKENS = torch.tensor(
    [[0, 3, 3, 1], [2, 2, 4, 0], [1, 4, 4, 4]]
)  # some several times, in one sample too


def embedded(embedding: nn.Module, activation: nn.Module, family: Callable[..., Case]) -> Case:
    layers = [embedding, Lambda(lambda h: h.flatten(1)), nn.Linear(8, 4), activation]
    return family(nn.Sequential(*layers, nn.Linear(4, 3)), TOKENS)


def embedding_per_token() -> Case:
    layers = [nn.Embedding(5, 3), nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 3)]
    return elementwise(nn.Sequential(*layers), TOKENS, by_token, labels(3, 4))


def embedding_summed_over_tokens() -> Case:
    """A token twice in a sample: its two uses add up before they are squared."""
    layers = [nn.Embedding(5, 4), Lambda(lambda h: h.sum(1)), nn.ReLU(), nn.Linear(4, 3)]
    return piecewise(nn.Sequential(*layers), TOKENS)


LAYERS |= {
    "embedding_relu": lambda: embedded(nn.Embedding(5, 2), nn.ReLU(), piecewise),
    "embedding_tanh": lambda: embedded(nn.Embedding(5, 2), nn.Tanh(), elementwise),
    "embedding_padding_idx": lambda: embedded(
        nn.Embedding(5, 2, padding_idx=4), nn.ReLU(), piecewise
    ),
    "embedding_per_token": embedding_per_token,
    "embedding_summed_over_tokens": embedding_summed_over_tokens,
}
