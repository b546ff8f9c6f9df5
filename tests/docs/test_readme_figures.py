"""How README.md's numbers are found and held against the files that they come from."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]

PAGE = """# A page of 2 minutes

It is 7.6 points better [+5.8, -9.5] over 1,000 steps (Somebody 2011), C++17, mnist1d, 40-100-100-10.

| 5 | 6 |
|---|---|

```python
x = 8
```
More in `9` [chapter 10](page-11.md), <!-- 12 --> 3.10 or later.
"""


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import readme_figures

    return readme_figures


def test_numbers_of_prose_and_no_others(figures: ModuleType) -> None:
    assert figures.prose_numbers(PAGE) == ["2", "7.6", "5.8", "9.5", "1,000", "10", "3.10"]


def test_numbers_without_an_entry(figures: ModuleType) -> None:
    known = [figures.Figure(text, "", "") for text in ("2", "5.8", "9.5", "1,000", "10")]
    assert figures.unexplained(PAGE, known) == ["7.6", "3.10"]


RESULT = {
    "tasks": [{"task": "a", "value": 1}, {"task": "b", "value": 7.649}],
    "benchmarks": [{"name": "x", "extra_info": {"comparison": "c / d", "ratio": 0.12}}],
}


@pytest.mark.parametrize(
    ("text", "at", "scale", "holds"),
    [
        ("7.6", ("tasks", "b", "value"), 1, True),
        ("7.65", ("tasks", "b", "value"), 1, True),
        ("8", ("tasks", "b", "value"), 1, True),
        ("7.7", ("tasks", "b", "value"), 1, False),
        ("765", ("tasks", "b", "value"), 100, True),
        ("0.1", ("benchmarks", "c / d", "extra_info", "ratio"), 1, True),
    ],
)
def test_figures_of_results(
    text: str,
    at: tuple[str, ...],
    scale: float,
    holds: bool,
    figures: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    (tmp_path / "x.json").write_text(json.dumps(RESULT))
    assert figures.Figure(text, "x.json", at, scale).holds() is holds


@pytest.mark.parametrize(
    ("text", "at", "holds"),
    [
        ("3.10", 'requires-python = ">=3.10"', True),
        ("3.11", 'requires-python = ">=3.10"', False),
        ("3.11", 'requires-python = ">=3.11"', False),
    ],
)
def test_figures_of_other_files(text: str, at: str, holds: bool, figures: ModuleType) -> None:
    assert figures.Figure(text, "pyproject.toml", at).holds() is holds
