"""The Python of README.md runs as written, from top to bottom, and prints what the comments beside it say."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "README.md"
NUMBER = re.compile(r"\d+\.?\d*(?:e[+-]?\d+)?")


def test_python_blocks():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 3
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        for block in blocks:
            exec(compile(block, README.name, "exec"), names)
    expected = [
        line.split("  # ")[1] for line in "".join(blocks).splitlines() if line.startswith("print(")
    ]
    assert len(expected) >= 4
    for told, got in zip(expected, printed.getvalue().splitlines(), strict=True):
        assert NUMBER.sub("#", got) == NUMBER.sub("#", told)
        # In the last digit that is told, other versions of torch may round differently.
        numbers = [float(number) for number in NUMBER.findall(got)]
        assert numbers == pytest.approx(
            [float(number) for number in NUMBER.findall(told)], rel=1e-3
        )
