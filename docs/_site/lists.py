"""Reads lists as GitHub does: they need no empty line before them, and two spaces nest them."""

from __future__ import annotations

import re

from fences import lines_of

ITEM = re.compile(r"(?P<indent> {0,3})(?P<mark>[-*+]|1\.) ")  # what may interrupt a paragraph
NESTED = re.compile(r" {2,3}(?=(?:[-*+]|\d+\.) )")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Adds the empty lines and spaces that Python-Markdown wants."""
    made: list[str] = []
    in_list = False
    for whole, is_code in lines_of(markdown):
        line = whole.rstrip("\n")
        if is_code:
            made.append(line)
            continue
        if in_list and NESTED.match(line):
            line = NESTED.sub("    ", line)
        elif ITEM.match(line):
            if not in_list and made and made[-1].strip():
                made.append("")
            in_list = True
        elif line.strip() and not line.startswith(" ") and made and not made[-1].strip():
            in_list = False  # a paragraph after an empty line ends a list
        made.append(line)
    return "\n".join(made) + "\n"
