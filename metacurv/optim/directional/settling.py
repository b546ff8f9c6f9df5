"""Settling: the rate moves to where noise begins to cost."""

from __future__ import annotations

import math

_TARGET = 0.02  # part of the progress that noise may cost
_SCALE = 0.07  # more or less of it that asks for a unit of log lr
_MOST = 1.0  # that one look may ask for
_GAIN, _LAST_GAIN = 0.5, 0.1  # parts of what is asked for that the first look and later ones give
LOOKS = 15  # in which the gain falls from one to the other


def settled(noise: float, progress: float, turn: int) -> float:
    """Returns the factor on the rate that one look at the noise asks for, > 0.

    While a rate is held, the iterate stands above the average of the iterates by what noise costs, of which the average is
    nearly free (Polyak and Juditsky 1992). Where that is a larger part of the progress than it may be, the rate is too large;
    where it is smaller, there is room.

    Args:
        noise: the loss of the iterate less that of the average.
        progress: the loss at the beginning less that of the average. Where it is not above zero, or one of the two is not
            finite, nothing can be told and the factor is 1.
        turn: the number of looks before. The later the look, the less it moves the rate, so that its own error averages out
            (Robbins and Monro 1951).
    """
    if not (progress > 0 and math.isfinite(progress) and math.isfinite(noise)):
        return 1.0
    asked = (_TARGET - noise / progress) / _SCALE
    gain = max(_GAIN + (_LAST_GAIN - _GAIN) * turn / (LOOKS - 1), _LAST_GAIN)
    return math.exp(gain * min(max(asked, -_MOST), _MOST))
