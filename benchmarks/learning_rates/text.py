"""Text by character, in windows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .part import Part, Splits

ALPHABET = 128
_EVALUATED = (
    400  # windows of a part that is only evaluated: enough to tell methods apart, and quick
)


def characters(
    text: str, context: int, seed: int, *, train: float = 0.8, validation: float = 0.1
) -> Splits:
    """Cuts a text that is read in a circle, from another place for every seed, into these shares and the rest for the test.

    Inputs are windows of ``context`` characters, targets the characters after each.
    """
    codes = torch.tensor(list(text.encode("ascii", "replace")), dtype=torch.int64) % ALPHABET
    codes = codes.roll(int(np.random.default_rng(seed).integers(len(codes))))
    first, second = int(train * len(codes)), int((train + validation) * len(codes))
    return Splits(
        train=_windows(codes[:first], context, context // 4),
        validation=_windows(codes[first:second], context, context, _EVALUATED),
        test=_windows(codes[second:], context, context, _EVALUATED),
    )


def _windows(codes: Tensor, context: int, every: int, most: int | None = None) -> Part:
    windows = codes.unfold(0, context + 1, every)[:most]
    return Part(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())
