"""README.md and the pages of docs/, and the Python on them."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"(?:^<!-- needs: (?P<needs>[^>]*) -->\n)?"
    r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```$"
    # The whole output, where a page shows it.
    r"(?:\n\n(?:It )?prints:?\n\n(?P=indent)```text\n(?P<told>.*?)^(?P=indent)```$)?",
    re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"\d+\.?\d*(?:e[+-]?\d+)?")


def pages() -> list[Path]:
    """All of them."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: Path) -> str:
    """For a test's id."""
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """One ``python`` fence.

    Attributes:
        line: of the page, where the code begins.
        needs: packages beside the test extra, by the names under which they are imported.
        told: the output that the page shows below it, if it does.
    """

    code: str
    line: int
    needs: tuple[str, ...]
    told: str | None

    @property
    def missing(self) -> list[str]:
        """What it needs and is not installed."""
        return [name for name in self.needs if find_spec(name) is None]


def blocks(markdown: str) -> list[Block]:
    """In their order."""
    return [
        Block(
            code=textwrap.dedent(found["code"]),
            line=markdown.count("\n", 0, found.start("code")) + 1,
            needs=tuple(name.strip() for name in (found["needs"] or "").split(",") if name.strip()),
            told=None if found["told"] is None else textwrap.dedent(found["told"]),
        )
        for found in BLOCK.finditer(markdown)
    ]


def run(page: str, program: list[Block], names: ModuleType) -> None:
    """Runs the blocks as one program, a statement at a time, and compares what it prints with what the page says."""
    for block in program:
        printed = ""
        for statement, told in _statements(block):
            ast.increment_lineno(statement, block.line - 1)
            where = f"{page}:{statement.lineno}"
            code = compile(ast.Module([statement], []), page, "exec")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(code, vars(names))
            printed += out.getvalue()
            _compare(where, out.getvalue().splitlines(), told, _is_print(statement))
        if block.told is not None:
            _compare(
                f"{page}:{block.line}", printed.splitlines(), block.told.splitlines(), exact=True
            )


def _statements(block: Block) -> Iterator[tuple[ast.stmt, list[str]]]:
    """Each with what the comments behind its prints say."""
    comments = {
        token.start[0]: token.string.removeprefix("# ")
        for token in tokenize.generate_tokens(io.StringIO(block.code).readline)
        if token.type == tokenize.COMMENT
    }
    for statement in ast.parse(block.code).body:
        ends = [node.end_lineno for node in ast.walk(statement) if _is_print(node)]
        yield statement, [comments[end] for end in sorted(ends) if end in comments]


def _is_print(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "print"
    )


def _compare(where: str, printed: list[str], told: list[str], exact: bool) -> None:
    """A print of its own must print just what is told; one in a loop, among other lines."""
    if exact and told:
        assert len(printed) == len(told), f"{where} prints {printed}, the page says {told}"
    rest = iter(printed)
    for line in told:
        found = any(alike(line, candidate) for candidate in rest)
        assert found, f"{where} prints {printed}, the page says {line!r}"


def alike(told: str, printed: str) -> bool:
    """The same words, and numbers to three digits: in the last one that is told another torch may round otherwise."""
    if NUMBER.sub("#", told) != NUMBER.sub("#", printed):
        return False
    numbers = ([float(x) for x in NUMBER.findall(text)] for text in (told, printed))
    expected, got = numbers
    return got == pytest.approx(expected, rel=1e-3)


@contextlib.contextmanager
def as_main() -> Iterator[ModuleType]:
    """A module that is ``__main__`` meanwhile, so that what a page defines there can be pickled."""
    before, module = sys.modules["__main__"], ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        yield module
    finally:
        sys.modules["__main__"] = before
