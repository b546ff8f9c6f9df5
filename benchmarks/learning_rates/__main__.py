"""``python -m benchmarks.learning_rates``."""

from __future__ import annotations

import sys

from .start import start

OPTION = "--searched"


def _prefer_checkout() -> None:
    """Puts the checkout that ``--searched`` names where metacurv is looked for first; processes inherit that."""
    for place, argument in enumerate(sys.argv[1:], 1):
        name, equals, value = argument.partition("=")
        if name == OPTION:
            sys.path[:0] = [value] if equals else sys.argv[place + 1 : place + 2]


if __name__ == "__main__":
    _prefer_checkout()
    sys.exit(start("benchmarks.learning_rates"))
