"""Writes a generated block between its two marks in README.md."""

from __future__ import annotations


def marks(name: str) -> tuple[str, str]:
    """What stands before and after the block called ``name``."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def with_block(text: str, block: str, name: str = "speed") -> str:
    """``text`` with ``block`` between the two marks, which stay."""
    first, last = marks(name)
    begin, end = text.find(first), text.find(last)
    if text.count(first) != 1 or text.count(last) != 1 or end < begin:
        raise ValueError(f"README.md must hold one {first} and, after it, one {last}")
    return f"{text[: begin + len(first)]}\n{block}\n{text[end:]}"
