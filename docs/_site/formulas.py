"""Turns formulas into MathML while the site is built, which browsers show by themselves: no script, no other server."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

# As pymdownx.arithmatex leaves them with its option ``generic``.
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?:\\\(|\\\[)(?P<tex>.*?)(?:\\\)|\\\])</(?P=tag)>',
    re.DOTALL,
)
# The converter copies what it does not know into its result.
UNKNOWN = re.compile(r"\\[A-Za-z|]+|<mi>&</mi>")


def on_page_content(content: str, page: Page, **_: object) -> str:
    """The page with MathML in the places of its TeX."""

    def made(formula: re.Match[str]) -> str:
        tex = html.unescape(formula["tex"]).strip()
        mathml = convert(tex, display="block" if formula["tag"] == "div" else "inline")
        if unknown := UNKNOWN.search(mathml):
            raise PluginError(
                f"{page.file.src_uri}: latex2mathml cannot make {unknown[0]} of: {tex}"
            )
        return f'<{formula["tag"]} class="formula">{mathml}</{formula["tag"]}>'

    return FORMULA.sub(made, content)
