"""Docstrings are whole sentences, or noun phrases for attributes; fragments are named with their place.

Looked at are the package and benchmarks/learning_rates, which was a part of it once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for room in ("metacurv", "benchmarks/learning_rates")
    for path in (ROOT / room).rglob("*.py")
)

# Openings of a first sentence that has no subject and verb, and is no noun phrase for an attribute either: it continues a
# sentence that only the function's name begins, or it is a bare formula, shape or condition.
FRAGMENT = re.compile(
    r"(?:Of|As|What|Those|Whether|Where|When|Which|How|Why|By|With|Without|To|From|In|On|At|For|Before|After|Around|Between"
    r"|Not|No|None|Nothing|And|But|Like|Likewise|The same[,.])(?!\w)"
    r"|[^A-Z`\d]"  # a formula, a shape, a word without its capital
    r"|\d+(?:-dim|:)"
    r"|``[^`]*``:"
)
# Openings that no sentence of a docstring may have, wherever it stands, nor the description of an argument.
ANYWHERE = re.compile(
    r"(?:\A|[.!?]\s+|\n\s*\n\s*)((?:Of|What|Those of) [^\n]*)|\n\s+\w+: (of [^\n]*)"
)


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the place and the text of every docstring in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                name = getattr(node, "name", "the module")
                yield f"{path}:{node.body[0].lineno}: {name}", text


def fragments(path: Path) -> list[str]:
    """Lists the docstrings that begin as fragments, or hold a sentence that does."""
    found = []
    for place, text in docstrings(path):
        if FRAGMENT.match(text):
            found.append(f"{place} begins {text.splitlines()[0]!r}")
        found += [f"{place} says {m[1] or m[2]!r}" for m in ANYWHERE.finditer(text)]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_are_sentences(path):
    found = fragments(path)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "Of every group; nan before the first step.",
        "What is called after every reading.",
        "As the class above says.",
        "Whether the rate is steady.",
        "Where a method is to work.",
        "By blocks of one program.",
        "Those of all groups, numbered.",
        "With attention that can be differentiated twice.",
        "And counts the iterate in.",
        "To before + distance u.",
        "The same, None where there is none.",
        "[S], a copy.",
        "0-dim.",
        "float64 [n_samples].",
        "lr / reference of every group.",
        "``order``: a permutation.",
    ],
)
def test_fragments_are_found(text):
    assert FRAGMENT.match(text)


@pytest.mark.parametrize(
    "text",
    [
        "Returns the trace of the Hessian.",
        "Offers what torch's optimizers offer.",
        "Notes what arrives at each node.",
        "The learning rate of every group.",
        "The same samples for less work.",
        "``read_trace`` needs a checked loss.",
        "True where the loss is convex.",
        "Ten Philox rounds.",
        "100 images of digits.",
    ],
)
def test_sentences_pass(text):
    assert not FRAGMENT.match(text)
    assert not ANYWHERE.search(text)


def test_every_sentence_is_looked_at():
    assert ANYWHERE.search("Returns it. Of several batches each counts.")
    assert ANYWHERE.search("Returns it.\n\nWhat remains is zero.")
    assert ANYWHERE.search("Returns it.\n\nArgs:\n    device: of the samples.")
    assert not ANYWHERE.search("Returns it, of a class\nof its own.\n\nArgs:\n    device: the GPU.")


def test_a_file_with_a_fragment_is_named(tmp_path):
    (tmp_path / "module.py").write_text(
        '"""The module."""\n\n\ndef f():\n    """Of all of them."""\n'
    )
    (found, again) = fragments(tmp_path / "module.py")
    assert found == f"{tmp_path / 'module.py'}:5: f begins 'Of all of them.'"
    assert again.endswith("f says 'Of all of them.'")
