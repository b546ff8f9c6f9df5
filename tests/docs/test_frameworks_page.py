"""Each cell of the table of frameworks names a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_cell_is_a_test() -> None:
    page = (ROOT / "docs/guide/frameworks.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 15
    sources = [
        path.read_text()
        for folder in ("integrations", "distributed", "optim/directional")
        for path in (ROOT / "tests" / folder).glob("test_*.py")
    ]
    missing = [name for name in named if not any(f"def {name}(" in text for text in sources)]
    assert not missing
