"""The Python of README.md and docs/concepts/estimators.md runs as written, and prints what stands beside it."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r"\d+\.?\d*(?:e[+-]?\d+)?")


def blocks(path: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


def printed_by(code: list[str]) -> list[str]:
    """By blocks of one program."""
    out, names = io.StringIO(), {}
    with contextlib.redirect_stdout(out):
        for block in code:
            exec(compile(block, "<document>", "exec"), names)
    return out.getvalue().splitlines()


def assert_alike(found: list[str], told: list[str]) -> None:
    """In the last digit that is told, another torch may round otherwise."""
    for got, expected in zip(found, told, strict=True):
        assert NUMBER.sub("#", got) == NUMBER.sub("#", expected)
        numbers = [float(number) for number in NUMBER.findall(got)]
        assert numbers == pytest.approx([float(x) for x in NUMBER.findall(expected)], rel=1e-3)


def test_readme():
    code = blocks("README.md", "python")
    lines = [line for line in "".join(code).splitlines() if line.startswith("print(")]
    assert len(lines) >= 4
    assert_alike(printed_by(code), [line.split("  # ")[1] for line in lines])


def test_worked_example_of_the_estimators():
    (code,) = blocks("docs/concepts/estimators.md", "python")
    (told,) = blocks("docs/concepts/estimators.md", "text")
    assert_alike(printed_by([code]), told.splitlines())
