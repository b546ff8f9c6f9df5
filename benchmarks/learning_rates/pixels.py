"""A photograph as a regression: where a pixel is, and which colour it has."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from .part import Splits, shuffled, standardised

_SHRUNK = 8  # pixels of the photograph to a pixel of the task, each way


def temple(seed: int) -> Splits:
    """A photograph of a temple (china.jpg of scikit-learn; CC BY 2.0), 53 x 80 pixels, which are split at random.

    Inputs are a pixel's row and column from -1 to 1, as they are: nothing is added that would make high frequencies easy.
    Targets are its three colours.
    """
    return shuffled(*_pixels(), seed)


@cache
def _pixels() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_sample_image  # type: ignore[import-untyped]

    image = np.asarray(load_sample_image("china.jpg"), dtype=float)
    rows, columns = (size // _SHRUNK for size in image.shape[:2])
    small = image[: rows * _SHRUNK, : columns * _SHRUNK]
    small = small.reshape(rows, _SHRUNK, columns, _SHRUNK, 3).mean((1, 3))
    at = torch.cartesian_prod(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns))
    return at, standardised(small.reshape(-1, 3))
