"""The tables of docs/coming-from are what their script makes of the stored results."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.stem for path in (ROOT / "docs" / "coming-from").glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_block(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    made = import_module("benchmarks.coming_from").block(page)
    block_of = import_module("benchmarks.page_block").block_of
    assert block_of(ROOT / "docs" / "coming-from" / f"{page}.md", page) == made
