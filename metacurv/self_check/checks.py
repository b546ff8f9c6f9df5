"""All checks on one device."""

from __future__ import annotations

from functools import partial

import torch

from metacurv.self_check.check import Check
from metacurv.self_check.op_checks import has_kernels, op_checks, philox
from metacurv.self_check.whole import WHOLE


def checks(device: torch.device) -> list[Check]:
    """Lists the checks, from the generator of random numbers to a training."""
    backend = "native" if has_kernels(device) else "reference"
    generator = [Check("Philox4x32-10", philox)] if device.type == "cpu" else []
    whole = [Check(name, partial(run, backend, device)) for name, run in WHOLE]
    return [*generator, *op_checks(device), *whole]


def explanation(device: torch.device) -> str:
    """Says in a sentence or two what the results of the ops are compared with."""
    if has_kernels(device):
        return "Each op: its compiled kernel and its torch twin against numbers worked out by hand, and against each other."
    return (
        "No kernels are loaded for this device, so there is nothing to compare the torch twins with. Each op: its twin "
        "against numbers worked out by hand."
    )
