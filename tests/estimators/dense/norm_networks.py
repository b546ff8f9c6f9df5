"""Normalization with affine parameters, and batch norm in both modes."""

from __future__ import annotations

from torch import Tensor, nn

from tests.estimators.dense.case import Case, Table, elementwise, general, piecewise
from tests.problems.problem import rand

NORMS: Table = {}


def normed(norm: nn.Module, activation: nn.Module | None = None, width: int = 4) -> nn.Sequential:
    activation = activation or nn.ReLU()
    return nn.Sequential(nn.Linear(3, width), norm, activation, nn.Linear(width, 3))


def normed_image(norm: nn.Module) -> nn.Sequential:
    layers = [nn.Conv2d(1, 4, 2), norm, nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(*layers)


def with_statistics(norm: nn.Module) -> nn.Module:
    """As after some training."""
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def norm_of_the_input() -> Case:
    """Before the first weight a norm is a constant, and its own parameters are linear."""
    layers = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    return piecewise(layers, rand(6, 3), may_refuse=True)


def norm_of_the_output() -> Case:
    layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.LayerNorm(3))
    return general(layers, rand(6, 3))


def group_norm_on_rows() -> Case:
    """Groups of three: a group of two comes out as little more than a sign."""
    return general(normed(nn.GroupNorm(2, 6), width=6), 2 * rand(6, 3))


def image(norm: nn.Module) -> Case:
    return general(normed_image(norm), rand(4, 1, 4, 4))


NORMS |= {
    "layer_norm": lambda: general(normed(nn.LayerNorm(4)), 2 * rand(6, 3)),
    "layer_norm_without_affine": lambda: general(
        normed(nn.LayerNorm(4, elementwise_affine=False)), 2 * rand(6, 3)
    ),
    "rms_norm": lambda: general(normed(nn.RMSNorm(4)), 2 * rand(6, 3)),
    "group_norm_on_rows": group_norm_on_rows,
    "layer_norm_on_images": lambda: image(nn.LayerNorm([4, 3, 3])),
    "group_norm_on_images": lambda: image(nn.GroupNorm(2, 4)),
    "instance_norm": lambda: image(nn.InstanceNorm2d(4, affine=True)),
    "norm_of_the_input": norm_of_the_input,
    "norm_of_the_output": norm_of_the_output,
}


def batch_norm_eval_relu() -> Case:
    return piecewise(normed(with_statistics(nn.BatchNorm1d(4))).eval(), rand(6, 3))


def batch_norm_eval_tanh() -> Case:
    return elementwise(normed(with_statistics(nn.BatchNorm1d(4)), nn.Tanh()).eval(), rand(6, 3))


def batch_norm_eval_on_images() -> Case:
    model = normed_image(with_statistics(nn.BatchNorm2d(4))).eval()
    return elementwise(model, rand(4, 1, 4, 4))


def batch_norm_eval_without_affine() -> Case:
    norm = with_statistics(nn.BatchNorm1d(4, affine=False))
    return piecewise(normed(norm).eval(), rand(6, 3))


def batch_norm_in_train_mode() -> Case:
    return general(normed(nn.BatchNorm1d(4)), rand(6, 3), samples_interact=True)


def batch_norm_of_the_batch_in_eval_mode() -> Case:
    """Without running statistics it takes the batch's in eval mode too."""
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    return general(normed(norm).eval(), rand(6, 3), samples_interact=True)


def one_batch_norm_left_in_train_mode() -> Case:
    model = normed(with_statistics(nn.BatchNorm1d(4))).eval()
    model[1].train()
    return general(model, rand(6, 3), samples_interact=True)


class MinusBatchMean(nn.Module):
    """Samples that interact, by a model's own code: no module shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second((h - h.mean(0)).relu())


def minus_the_batch_mean() -> Case:
    return piecewise(MinusBatchMean(), rand(6, 3), samples_interact=True)


NORMS |= {
    "batch_norm_eval_relu": batch_norm_eval_relu,
    "batch_norm_eval_tanh": batch_norm_eval_tanh,
    "batch_norm_eval_on_images": batch_norm_eval_on_images,
    "batch_norm_eval_without_affine": batch_norm_eval_without_affine,
    "batch_norm_in_train_mode": batch_norm_in_train_mode,
    "batch_norm_of_the_batch_in_eval_mode": batch_norm_of_the_batch_in_eval_mode,
    "one_batch_norm_left_in_train_mode": one_batch_norm_left_in_train_mode,
    "minus_the_batch_mean": minus_the_batch_mean,
}
