"""The tables of docs/cuda.md that scripts write."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs" / "cuda.md"


def section(name: str) -> str:
    """What stands between <!-- NAME --> and <!-- /NAME -->.

    Raises:
        LookupError: there is no such section.
    """
    return _find(name, PAGE.read_text())[1]


def write_section(name: str, text: str) -> None:
    """Puts ``text`` there instead."""
    page = PAGE.read_text()
    found = _find(name, page)
    PAGE.write_text(page[: found.start(1)] + text + page[found.end(1) :])


def _find(name: str, page: str) -> re.Match[str]:
    found = re.search(rf"<!-- {name} -->\n\n(.*?)\n\n<!-- /{name} -->", page, re.DOTALL)
    if found is None:
        raise LookupError(f"{PAGE} has no section {name}")
    return found
