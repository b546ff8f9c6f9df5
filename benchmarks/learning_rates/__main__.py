"""``python -m benchmarks.learning_rates``."""

from __future__ import annotations

import sys

OPTION = "--searched"


def _prefer_checkout() -> None:
    """Puts the checkout that ``--searched`` names where metacurv is looked for first; processes inherit that."""
    for place, argument in enumerate(sys.argv[1:], 1):
        name, equals, value = argument.partition("=")
        if name == OPTION:
            sys.path[:0] = [value] if equals else sys.argv[place + 1 : place + 2]


def _main() -> int:
    _prefer_checkout()
    try:
        from .cli import main

        return main()
    except ModuleNotFoundError as error:
        print(
            f"python -m benchmarks.learning_rates needs {error.name}, which is not installed.\n"
            "Install everything it needs with:  pip install -e '.[benchmark]'",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(_main())
