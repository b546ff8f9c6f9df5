"""Starts a program of this folder, and says what to install where something that it needs is missing."""

from __future__ import annotations

import importlib
import sys


def start(package: str) -> int:
    """Runs ``main`` of the package's ``cli``. Returns: the exit status, 1 where a package is not installed."""
    try:
        status: int = importlib.import_module(f"{package}.cli").main()
    except ModuleNotFoundError as error:
        print(
            f"python -m {package} needs {error.name}, which is not installed.\n"
            "Install everything it needs with:  pip install -e '.[optimizers]'",
            file=sys.stderr,
        )
        return 1
    return status
