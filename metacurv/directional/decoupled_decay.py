"""The part of a step that is decoupled weight decay, and hence no part of the direction that the loss is measured along."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

# torch's optimizers that multiply parameters by 1 - lr * weight_decay whatever their flags (Loshchilov and Hutter 2019), by
# name: Muon came with torch 2.9 only.
_ALWAYS = frozenset({"Adafactor", "AdamW", "Muon"})


def decoupled_decay(base: Optimizer, group: dict[str, Any]) -> float:
    """Returns w of the factor 1 - lr w by which ``base`` shrinks the parameters of ``group`` beside its step; else 0."""
    names = {cls.__name__ for cls in type(base).__mro__}
    if names & _ALWAYS or group.get("decoupled_weight_decay"):
        return float(group.get("weight_decay", 0.0))
    return 0.0
