"""``python -m benchmarks.learning_rates.development``."""

from __future__ import annotations

import sys


def _main() -> int:
    try:
        from .cli import main

        return main()
    except ModuleNotFoundError as error:
        print(
            f"python -m benchmarks.learning_rates.development needs {error.name}, which is not installed.\n"
            "Install everything it needs with:  pip install -e '.[benchmark]'",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(_main())
