"""Tells the code of a page from its prose."""

from __future__ import annotations

import re
from collections.abc import Iterator

FENCE = re.compile(r"\s*(```+|~~~+)")


def lines_of(markdown: str) -> Iterator[tuple[str, bool]]:
    """Yields each line, with its end, and whether it belongs to a fence, whose own two lines do."""
    fence = ""
    for line in markdown.splitlines(keepends=True):
        mark = FENCE.match(line)
        is_code = bool(fence or mark)
        if fence:
            fence = "" if mark and mark[1].startswith(fence) else fence
        elif mark:
            fence = mark[1]
        yield line, is_code
