"""Tables and paragraphs for a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

_GLUE = "\N{NO-BREAK SPACE}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of ``rows``: the first column to the left, the others to the right of their widest."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            ["", row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]


def paragraph(text: str, width: int, first: str = "", later: str = "") -> list[str]:
    """Lines of at most ``width`` that begin with ``first`` and ``later``; an interval in brackets and a path stay whole."""
    whole = re.sub(r"\[[^]]*\]", lambda found: found[0].replace(" ", _GLUE), text)
    lines = textwrap.wrap(
        whole,
        width,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_GLUE, " ") for line in lines]
