"""What a type checker, and so an editor, knows of ``MetaCurvatureLR``; mypy reads this file, nothing runs it."""

from __future__ import annotations

import torch
from torch import nn
from typing_extensions import assert_type

from metacurv import (
    DirectionalLR,
    DirectionalRecord,
    DirectionalRule,
    MetaCurvatureLR,
    ReciprocalLR,
)

model = nn.Linear(2, 2)
base = torch.optim.Adam(model.parameters())
loss_fn = nn.CrossEntropyLoss()

assert_type(MetaCurvatureLR(base), ReciprocalLR)
assert_type(MetaCurvatureLR(base, alpha=0.1), ReciprocalLR)
assert_type(MetaCurvatureLR(base, rule="reciprocal", model=model), ReciprocalLR)
found = MetaCurvatureLR(base, model=model, loss_fn=loss_fn, probe=[], horizon=10)
assert_type(found, DirectionalLR)
assert_type(found.history, list[DirectionalRecord])
assert_type(
    MetaCurvatureLR(base, model=model, loss_fn=loss_fn, probe=[], rule=DirectionalRule()),
    DirectionalLR,
)

# What belongs to the other rule is not there.
missing = MetaCurvatureLR(base).history  # type: ignore[attr-defined]
absent = found.last_estimate  # type: ignore[attr-defined]
MetaCurvatureLR(base, alpha=0.1, probe=[])  # type: ignore[call-overload]
