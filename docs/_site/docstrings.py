"""Docstrings are written to be read in a terminal; this changes what Markdown would read otherwise."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

CHANGES = (
    (re.compile(r"^( *)Example:$", re.MULTILINE), r"\1Examples:"),  # the section's name in griffe
    (re.compile(r"::$", re.MULTILINE), ":"),  # before an indented block
    (re.compile(r"^( +\w+): >", re.MULTILINE), r"\1: \\>"),  # no quotation
)


class Docstrings(Extension):
    """For griffe, as mkdocs.yml says."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Changes the docstring of one object."""
        if obj.docstring is not None:
            for pattern, made in CHANGES:
                obj.docstring.value = pattern.sub(made, obj.docstring.value)
