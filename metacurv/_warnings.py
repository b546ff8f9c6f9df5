"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

# Frames of these folders are ours or torch's: a scheduler, for example, puts a wrapper around step.
_LIBRARY = (str(Path(__file__).parent), str(Path(torch.__file__).parent))


def warn_user(message: str, category: type[Warning]) -> None:
    """Warns at the innermost frame outside metacurv and torch (``skip_file_prefixes`` does this from Python 3.12 on)."""
    frame = sys._getframe(1)
    level = 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARY):
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)
