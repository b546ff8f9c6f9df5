"""The fixed table of losses, each on a perceptron with corners and on one that is smooth: name -> ``Case``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.estimators.dense.case import Case, Lambda, Table, elementwise, general, labels, piecewise
from tests.problems.problem import rand

ROWS, CLASSES = 6, 3
LossFunction = Callable[[Tensor, Any], Tensor]
# Loss and targets for outputs [6, 3].
Pair = tuple[LossFunction, Any]
WEIGHTS = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)


def some_ignored(*, value: int = -100) -> Tensor:
    return labels(ROWS).masked_fill(torch.tensor([0, 1, 0, 0, 1, 0], dtype=torch.bool), value)


def probabilities() -> Tensor:
    return rand(ROWS, CLASSES).softmax(1)


def bits() -> Tensor:
    return (rand(ROWS, CLASSES) > 0).double()


def cross_entropy(**options: Any) -> LossFunction:
    return functools.partial(F.cross_entropy, **options)


CROSS_ENTROPIES: dict[str, Callable[[], Pair]] = {
    "cross_entropy": lambda: (F.cross_entropy, labels(ROWS)),
    "cross_entropy_sum": lambda: (cross_entropy(reduction="sum"), labels(ROWS)),
    "cross_entropy_module": lambda: (nn.CrossEntropyLoss(), labels(ROWS)),
    "cross_entropy_lambda": lambda: (lambda out, y: F.cross_entropy(out, y), labels(ROWS)),
    "cross_entropy_times_a_number": lambda: (
        lambda out, y: 2.5 * F.cross_entropy(out, y),
        labels(ROWS),
    ),
    "cross_entropy_of_scaled_logits": lambda: (
        lambda out, y: F.cross_entropy(out / 0.7, y),
        labels(ROWS),
    ),
    "label_smoothing": lambda: (cross_entropy(label_smoothing=0.2), labels(ROWS)),
    "label_smoothing_module": lambda: (nn.CrossEntropyLoss(label_smoothing=0.2), labels(ROWS)),
    "class_weights": lambda: (cross_entropy(weight=WEIGHTS), labels(ROWS)),
    "class_weights_sum": lambda: (cross_entropy(weight=WEIGHTS, reduction="sum"), labels(ROWS)),
    "class_weights_module": lambda: (nn.CrossEntropyLoss(weight=WEIGHTS), labels(ROWS)),
    "class_weights_and_smoothing": lambda: (
        cross_entropy(weight=WEIGHTS, label_smoothing=0.2),
        labels(ROWS),
    ),
    "ignore_index": lambda: (F.cross_entropy, some_ignored()),
    "ignore_index_of_ones_own": lambda: (cross_entropy(ignore_index=2), some_ignored(value=2)),
    "ignore_index_sum": lambda: (cross_entropy(reduction="sum"), some_ignored()),
    "everything_at_once": lambda: (
        cross_entropy(weight=WEIGHTS, label_smoothing=0.1, ignore_index=-1),
        some_ignored(value=-1),
    ),
    "soft_targets": lambda: (F.cross_entropy, probabilities()),
    "soft_targets_that_do_not_add_up": lambda: (F.cross_entropy, 1.7 * probabilities()),
    "soft_targets_weights_smoothing": lambda: (
        cross_entropy(weight=WEIGHTS, label_smoothing=0.1),
        probabilities(),
    ),
}
OTHERS: dict[str, Callable[[], Pair]] = {
    "mse": lambda: (F.mse_loss, rand(ROWS, CLASSES)),
    "mse_sum": lambda: (functools.partial(F.mse_loss, reduction="sum"), rand(ROWS, CLASSES)),
    "mse_module": lambda: (nn.MSELoss(), rand(ROWS, CLASSES)),
    "bce_with_logits": lambda: (F.binary_cross_entropy_with_logits, bits()),
    "bce_with_logits_sum": lambda: (nn.BCEWithLogitsLoss(reduction="sum"), bits()),
    "bce_pos_weight": lambda: (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), bits()),
    "bce_weight": lambda: (nn.BCEWithLogitsLoss(weight=WEIGHTS), bits()),
    "bce_weight_and_pos_weight": lambda: (
        functools.partial(
            F.binary_cross_entropy_with_logits, weight=WEIGHTS, pos_weight=WEIGHTS.flip(0)
        ),
        bits(),
    ),
    # Errors around 1 and 3: on both sides of the threshold.
    "huber": lambda: (nn.HuberLoss(delta=1.5), 3 * rand(ROWS, CLASSES)),
    "huber_sum": lambda: (
        functools.partial(F.huber_loss, reduction="sum"),
        3 * rand(ROWS, CLASSES),
    ),
    "smooth_l1": lambda: (nn.SmoothL1Loss(beta=2.0), 3 * rand(ROWS, CLASSES)),
    "l1": lambda: (F.l1_loss, rand(ROWS, CLASSES)),
    "nll_of_log_softmax": lambda: (
        lambda out, y: F.nll_loss(out.log_softmax(1), y),
        labels(ROWS),
    ),
    "nll_of_log_softmax_with_weights": lambda: (
        lambda out, y: F.nll_loss(out.log_softmax(1), y, weight=WEIGHTS),
        labels(ROWS),
    ),
    "fourth_powers": lambda: (lambda out, y: ((out - y) ** 4).mean(), rand(ROWS, CLASSES)),
    "by_hand_with_row_weights": lambda: (
        lambda out, y: (y[:, :1] * (out - y).square()).sum(),
        rand(ROWS, CLASSES).abs(),
    ),
    # Some, or all, of the curvature in the outputs is negative.
    "sines": lambda: (lambda out, y: (3 * (out - y)).sin().mean(), rand(ROWS, CLASSES)),
    "negative_mse": lambda: (lambda out, y: -F.mse_loss(out, y), rand(ROWS, CLASSES)),
    "linear_in_the_output": lambda: (lambda out, y: (out * y).mean(), rand(ROWS, CLASSES)),
    # These take the output up in several places; the second is indefinite.
    "poisson_nll": lambda: (nn.PoissonNLLLoss(), rand(ROWS, CLASSES).abs().round()),
    "saddle": lambda: (lambda out, y: (out[:, 0] * out[:, 1] - y * out[:, 2]).mean(), rand(ROWS)),
}


def contrast(out: Tensor, same: Tensor) -> Tensor:
    """Squared distances of pairs of samples, drawn together or pushed apart."""
    distances = (out.unsqueeze(0) - out.unsqueeze(1)).square().sum(-1)
    return (same * distances + (1 - same) * (4 - distances).relu()).mean()


def info_nce(out: Tensor, partner: Tensor) -> Tensor:
    """Each sample must find its partner among all others, by the cosine."""
    unit = F.normalize(out)
    alone = torch.eye(len(out), dtype=torch.bool)
    return F.cross_entropy((unit @ unit.t() / 0.5).masked_fill(alone, -1e3), partner)


COUPLED: dict[str, Callable[[], Pair]] = {
    "contrastive": lambda: (contrast, (labels(ROWS)[:, None] == labels(ROWS)).double()),
    "info_nce": lambda: (info_nce, torch.arange(ROWS).view(2, -1).flip(0).flatten()),
    "variance_of_the_batch": lambda: (lambda out, y: out.var(0).log().sum(), None),
    "square_of_the_mean": lambda: (lambda out, y: (out.mean(0) - y).square().sum(), rand(CLASSES)),
}


def perceptron(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, CLASSES))


def with_loss(pair: Callable[[], Pair], *, smooth: bool, **flags: bool) -> Case:
    loss_fn, targets = pair()
    if targets is None:
        targets = torch.zeros(0)
    family = elementwise if smooth else piecewise
    model = perceptron(nn.Tanh() if smooth else nn.ReLU())
    return family(model, 2 * rand(ROWS, 3), loss_fn, targets, **flags)


LOSSES: Table = {}
for _pairs, _flags in (
    (CROSS_ENTROPIES | OTHERS, {}),
    (COUPLED, {"loss_couples_samples": True}),
):
    for _name, _pair in _pairs.items():
        for _smooth, _net in ((False, "relu"), (True, "tanh")):
            LOSSES[f"{_name}_{_net}"] = functools.partial(
                with_loss, _pair, smooth=_smooth, **_flags
            )


def class_dimension_1(*sizes: int) -> Case:
    """Outputs [N, C, *sizes], cross-entropy's own order."""
    layers = [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, CLASSES), Lambda(lambda h: h.movedim(-1, 1))]
    return elementwise(nn.Sequential(*layers), rand(2, *sizes, 3), targets=labels(2, *sizes))


def soft_targets_in_dimension_1() -> Case:
    layers = [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, CLASSES), Lambda(lambda h: h.movedim(-1, 1))]
    targets = rand(2, CLASSES, 3).softmax(1)
    loss_fn = cross_entropy(weight=WEIGHTS, label_smoothing=0.1)
    return piecewise(nn.Sequential(*layers), rand(2, 3, 3), loss_fn, targets)


def one_sample_without_a_batch_dimension() -> Case:
    return elementwise(perceptron(nn.Tanh()), rand(3), targets=torch.tensor(1), may_refuse=True)


def log_softmax_in_the_model() -> Case:
    """Split at the model's output, nothing bends after it: the GGN is 0, the Hessian is cross-entropy's."""
    layers = perceptron(nn.ReLU()).append(nn.LogSoftmax(1))
    return general(layers, rand(ROWS, 3), F.nll_loss, labels(ROWS), may_serve=True)


def ragged_row_means() -> Case:
    """Each row's loss is divided by its number of tokens, as language models do."""
    kept = torch.tensor([[1.0, 1, 0], [1, 1, 1]], dtype=torch.float64)

    def loss_fn(out: Tensor, y: Tensor) -> Tensor:
        losses = F.cross_entropy(out.flatten(0, 1), y.flatten(), reduction="none").view_as(kept)
        return ((losses * kept).sum(1) / kept.sum(1)).mean()

    return elementwise(perceptron(nn.Tanh()), rand(2, 3, 3), loss_fn, labels(2, 3))


LOSSES |= {
    "class_dimension_1_of_3": lambda: class_dimension_1(3),
    "class_dimension_1_of_4": lambda: class_dimension_1(2, 2),
    "soft_targets_in_dimension_1": soft_targets_in_dimension_1,
    "one_sample_without_a_batch_dimension": one_sample_without_a_batch_dimension,
    "log_softmax_in_the_model": log_softmax_in_the_model,
    "ragged_row_means": ragged_row_means,
}
