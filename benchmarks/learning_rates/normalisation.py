"""Batch normalisation where other parameters than the training's are evaluated: an average has no running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_EXAMPLES = 1000


@contextmanager
def statistics_of(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Normalises by the statistics of up to 1000 training inputs ``x`` [N, ...] at the present parameters.

    All methods are evaluated so, iterates and averages alike. Running statistics are as before afterwards; a model without
    them is left alone.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        yield
        return
    before = [
        (layer.momentum, {k: v.clone() for k, v in layer.named_buffers()}) for layer in layers
    ]
    modes = [module.training for module in model.modules()]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over what is seen
        model.eval()  # dropout would draw numbers that training is to draw
        for layer in layers:
            layer.train()
        with torch.no_grad():
            model(x[:_EXAMPLES])
        yield
    finally:
        for layer, (momentum, buffers) in zip(layers, before, strict=True):
            layer.momentum = momentum
            for name, value in buffers.items():
                layer.get_buffer(name).copy_(value)
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
