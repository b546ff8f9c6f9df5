"""Every relative link on README.md, CONTRIBUTING.md, CHANGELOG.md and in docs/ leads to a file, and to a heading in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .pages import ROOT, name_of, pages

CODE = (
    re.compile(r"^ *(```+).*?^ *\1 *$", re.MULTILINE | re.DOTALL),
    re.compile(r"(`+).+?\1", re.DOTALL),
)
LINK = re.compile(r"\]\((?P<path>[^)\s#]*)(?:#(?P<anchor>[^)\s]+))?(?:\s+\"[^\"]*\")?\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
OBJECT = re.compile(r"^::: (\S+)$", re.MULTILINE)  # of mkdocstrings
ALL = [*pages(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def slug(heading: str) -> str:
    """The anchor of a heading on GitHub."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def has_anchor(markdown: str, anchor: str) -> bool:
    headings = {slug(heading) for heading in HEADING.findall(CODE[0].sub("", markdown))}
    objects = OBJECT.findall(markdown)
    return anchor in headings or any(
        anchor == name or anchor.startswith(f"{name}.") for name in objects
    )


def broken(page: Path, markdown: str) -> list[str]:
    """Links that lead nowhere."""
    text = markdown
    for code in CODE:
        text = code.sub("", text)
    wrong = []
    for link in LINK.finditer(text):
        if "://" in link["path"] or link["path"].startswith("mailto:"):
            continue
        target = (page.parent / link["path"]).resolve() if link["path"] else page
        leads = target.is_relative_to(ROOT) and target.exists()
        if leads and link["anchor"] and target.suffix == ".md":
            there = markdown if target == page else target.read_text()
            leads = has_anchor(there, link["anchor"])
        if not leads:
            wrong.append(link[0].removeprefix("]"))
    return wrong


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_links(page: Path) -> None:
    assert broken(page, page.read_text()) == []


def test_links_that_lead_nowhere() -> None:
    text = """# A `b`: c, d-e

[good](#a-b-c-d-e) [good](README.md) ![good](docs/../README.md) [good](https://example.org/x) `[code](no.md)`

```text
[code](no.md)
```

[no file](no.md) [no heading](#a) [outside](../../x)

::: metacurv.ops

[good](#metacurv.ops.signed_sum) [no object](#metacurv.opsy)
"""
    found = broken(ROOT / "README.md", text)
    assert found == ["(no.md)", "(#a)", "(../../x)", "(#metacurv.opsy)"]
