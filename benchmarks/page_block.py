"""Generated blocks of the documentation: each stands on its page between two marks of its name."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def marks(name: str) -> tuple[str, str]:
    """What stands before and after the block called ``name``."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def block_of(page: Path, name: str) -> str:
    """What stands between the marks now.

    Raises:
        ValueError: a mark is missing, there twice, or the two are in the wrong order.
    """
    begin, end = _between(page, page.read_text(), name)
    return page.read_text()[begin:end].strip("\n")


def write_block(page: Path, name: str, block: str) -> None:
    """Puts ``block`` between the marks, which stay.

    Raises:
        ValueError: as ``block_of``.
    """
    text = page.read_text()
    begin, end = _between(page, text, name)
    block = block.strip("\n")
    page.write_text(f"{text[:begin]}\n{block}\n{text[end:]}")


def _between(page: Path, text: str, name: str) -> tuple[int, int]:
    first, last = marks(name)
    begin, end = text.find(first), text.find(last)
    if text.count(first) != 1 or text.count(last) != 1 or end < begin:
        raise ValueError(f"{page.name} must hold one {first} and, after it, one {last}")
    return begin + len(first), end
