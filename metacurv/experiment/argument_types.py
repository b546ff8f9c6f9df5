"""Types of command-line arguments whose errors say what was needed and what was given."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def whole(least: int, most: float = math.inf) -> Callable[[str], int]:
    """A whole number from ``least`` to ``most``."""
    needs = f">= {least}" if most == math.inf else f"from {least} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number {needs}, got {text!r}")
        return value

    return parse


def number(*, least: float = -math.inf, above: float = -math.inf) -> Callable[[str], float]:
    """A finite number, at least ``least`` and greater than ``above``."""
    needs = f"> {above:g}" if above > -math.inf else f">= {least:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least and value > above):
            raise argparse.ArgumentTypeError(f"must be a finite number {needs}, got {text!r}")
        return value

    return parse
