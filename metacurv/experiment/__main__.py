"""``python -m metacurv.experiment``."""

from __future__ import annotations

import io
import sys

# The packages of the extra [experiment], by the names they are imported under.
EXTRA = {
    "filelock",
    "matplotlib",
    "mnist1d",
    "numpy",
    "platformdirs",
    "scipy",
    "sklearn",
    "tqdm",
}


def _main() -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the table's ± must not end a run on ASCII
    try:
        from .cli import main

        return main()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRA:
            raise
        print(
            f"python -m metacurv.experiment needs {error.name}, which is not installed.\n"
            "Install everything it needs with:  pip install 'metacurv[experiment]'\n"
            "or, in a clone of its repository:  pip install -e '.[experiment]'",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(_main())
