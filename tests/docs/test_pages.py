"""The Python of README.md and of each page of docs/ runs as written, from top to bottom, and prints what stands beside it.

A block below the line ``<!-- needs: PACKAGE, ... -->`` is left out where a package is not installed, and the test of its page
then ends as skipped.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .pages import alike, as_main, blocks, name_of, pages, run

WITH_CODE = [page for page in pages() if blocks(page.read_text())]


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    program = blocks(page.read_text())
    with as_main() as names:
        run(str(page), [block for block in program if not block.missing], names)
    if missing := sorted({name for block in program for name in block.missing}):
        pytest.skip(f"ran without the blocks that need {', '.join(missing)}")


def test_no_block_is_overlooked() -> None:
    """Each fence that says ``python`` is one of those that run."""
    for page in pages():
        text = page.read_text()
        assert len(blocks(text)) == text.count("```python"), page


def ran(markdown: str) -> None:
    with as_main() as names:
        run("page", blocks(markdown), names)


GOOD = """
```python
import torch
x = 2.0
print("x:", x)  # x: 2
for i in range(3):
    print(i)  # 1
```

Text between.

```python
class Mine:
    pass
import pickle
assert type(pickle.loads(pickle.dumps(Mine()))) is Mine
print(x + 1)  # 3.0
print("not told")
```

prints

```text
3.0
not told
```
"""


def test_blocks_share_their_names() -> None:
    ran(GOOD)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("# x: 2", "# x: 2.01"),
        ("# x: 2", "# y: 2"),
        ("# 1", "# 4"),
        ("# 3.0", "# 3.0\nprint('more')"),
        ("not told\n```", "told\n```"),
        ("x + 1)", "x + 1, end='\\n\\n')"),
    ],
)
def test_what_is_printed_must_be_what_is_told(right: str, wrong: str) -> None:
    assert right in GOOD
    with pytest.raises(AssertionError, match="the page says"):
        ran(GOOD.replace(right, wrong))


def test_an_error_names_the_line_of_the_page() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        ran("# Page\n\n```python\nx = 1\n\n1 / 0\n```\n")
    last = caught.traceback[-1]
    assert (str(last.path), last.lineno + 1) == ("page", 6)


def test_blocks_that_need_a_package() -> None:
    text = "<!-- needs: torch, no_such_package -->\n```python\nimport no_such_package\n```\n"
    (block,) = blocks(text)
    assert block.missing == ["no_such_package"]
    (block,) = blocks(text.replace("no_such_package", "torch"))
    assert block.missing == []


@pytest.mark.parametrize(
    ("told", "printed", "same"),
    [
        ("tr = 13.7862 (exact)", "tr = 13.7871 (exact)", True),
        ("tr = 13.7862 (exact)", "tr = 13.81 (exact)", False),
        ("tr = 13.7862 (exact)", "tr = -13.7862 (exact)", False),
        ("1e-6", "1.0001e-6", True),
        ("1, 2", "1, 2, 3", False),
    ],
)
def test_alike(told: str, printed: str, same: bool) -> None:
    assert alike(told, printed) is same
