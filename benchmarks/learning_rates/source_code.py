"""Source code of Python's standard library as text, read where this Python keeps it (PSF licence)."""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path

from .part import Splits
from .text import characters

CONTEXT = 24
# Long modules that change little between versions.
_MODULES = ("argparse", "difflib", "doctest", "inspect", "optparse", "pickle", "tarfile", "turtle")


def standard_library(seed: int) -> Splits:
    """Cuts windows of 24 characters from eight modules, split 60 : 20 : 20."""
    return characters(_text(), CONTEXT, seed, train=0.6, validation=0.2)


@cache
def _text() -> str:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return "".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in _MODULES)
