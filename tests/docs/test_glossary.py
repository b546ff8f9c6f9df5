"""The glossary: every word of our own that a reader can meet is defined, in its part, in order, in a sentence or two."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import metacurv

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GLOSSARY = DOCS / "concepts" / "glossary.md"
PUBLIC, SOURCE = "Words of the documentation", "Words in the source"

# Words with a meaning of our own, and what they look like in prose where that meaning is meant.
COINAGES = {
    "activation space": r"activation space",
    "bend": r"bends of|\bbends\b(?! (?:the|down))",
    "boundary": r"\bboundary\b",
    "braked": r"\bbrake[ds]?\b",
    "candidate": r"\bcandidates?\b",
    "chain": r"\bchains?\b(?! rule)",
    "column": r"\bcolumns?\b",
    "draw": r"\bdraws?\b",
    "due": r"\bdue (?:steps?|readings?)\b|\b(?:is|are|was|became|step) due\b",
    "early rate": r"\bearly rate\b",
    "edge": r"\b(?:the|its) edge\b",
    "emulator": r"\bemulator\b",
    "factor": r"\bfactors? of H_out|loss's factor",
    "finish": r"\bthe finish\b",
    "follow": r"`directional, following`|\bto follow\b",
    "guard": r"\bthe guard\b",
    "head": r"\bhead\b|H_head",
    "hold": r"\b(?:then holds|is held)\b",
    "horizon": r"\bhorizon\b",
    "indirect": r"\bindirect\b",
    "iterate": r"\biterates?\b",
    "kept table": r"\bkept tables?\b(?! of)",
    "kink": r"\bkinks?\b",
    "linear in pieces": r"\blinear in pieces\b",
    "obstacle": r"\bobstacles?\b",
    "offset": r"\boffsets?\b",
    "parameter number": r"\bparameter number\b",
    "planted fault": r"\bplanted faults?\b",
    "probe": r"\bprobes?\b",
    "probe batch": r"\bprobe batch(?:es)?\b",
    "ratio": r"\blr d / n\b",
    "race": r"\b(?:a|the) race\b",
    "reading": r"\breadings?\b",
    "reciprocal rule": r"\breciprocal rule\b",
    "round": r"\b(?:first|second) round\b",
    "sample": r"\bsamples?\b",
    "scale": r"\b(?:one|each|every) scale\b",
    "sigma": r"\bsigma\b",
    "site": r"\bsites?\b",
    "slope": r"\bslopes?\b",
    "stack": r"\bstacks? of\b",
    "step line": r"\bstep line\b",
    "twin": r"\btwins?\b",
}
# Words that prose uses in their ordinary meaning, and the names in the source that have one of their own.
IDENTIFIERS = {
    "apart": r"\bapart: int\b",
    "bend": r"\bBends\b",
    "body": r"\bclass _Body\b",
    "boundary": r"\bboundary: tuple\b",
    "braked": r"\bbraked\b",
    "examined": r"\bclass Examined\b",
    "head": r"\bclass Head\b",
    "judge": r"\bclass Judge\b",
    "kept table": r"\bdef _kept_table\b",
    "layout": r"\bclass Layout\b",
    "live": r"\blive: Sequence\b",
    "mark": r"\bclass _Mark\b",
    "measured batch": r"\bclass MeasuredBatch\b",
    "part": r"\bclass Parts\b",
    "plan": r"\bclass ActivationPlan\b",
    "pull": r"\bdef pull\b",
    "push": r"\bdef push\b",
    "reach": r"\bself\.reach\b",
    "role": r"\bRole = Literal\b",
    "site": r"\bclass Site\b",
    "snapshot": r"\bclass Snapshot\b",
    "space": r"\bclass ActivationSpace\b",
    "step line": r"\bclass StepLine\b",
    "use": r"\bclass WeightUse\b",
    "walk": r"\bclass Walk\b",
}


def without_code(page: str) -> str:
    return re.sub(r"```.*?```", "", page, flags=re.DOTALL)


@cache
def entries() -> dict[str, dict[str, str]]:
    """Part -> word -> definition."""
    found: dict[str, dict[str, str]] = {}
    for part in re.split(r"^## ", GLOSSARY.read_text(), flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        words = re.split(r"^### ", body, flags=re.MULTILINE)[1:]
        found[title] = {}
        for word, _, definition in (entry.partition("\n") for entry in words):
            assert word not in found[title], f"two entries for {word!r}"
            found[title][word] = " ".join(definition.split())
    return found


def docstrings(thing: object) -> Iterator[str]:
    """Of what a user can see: a module's public functions, a class's public members."""
    yield inspect.getdoc(thing) or ""
    if isinstance(thing, ModuleType):
        for name in thing.__all__:
            yield from docstrings(getattr(thing, name))
    elif isinstance(thing, type):
        for name, member in vars(thing).items():
            if not name.startswith("_"):
                yield inspect.getdoc(member) or ""


def messages(source: str) -> Iterator[str]:
    """Texts of errors and warnings."""
    for node in ast.walk(ast.parse(source)):
        warns = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "warn_user"
        if warns or isinstance(node, ast.Raise):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                    yield inner.value


@cache
def public_text() -> str:
    """Docstrings, messages and pages; those for developers may use the words of the source."""
    texts = [text for name in metacurv.__all__ for text in docstrings(getattr(metacurv, name))]
    for path in (ROOT / "metacurv").rglob("*.py"):
        texts += messages(path.read_text())
    for page in DOCS.rglob("*.md"):
        if page != GLOSSARY and page.parent.name != "develop":
            texts.append(without_code(page.read_text()))
    return "\n".join(" ".join(text.split()) for text in texts)


def files_of(definition: str) -> list[str]:
    return re.findall(r"`(metacurv/[\w/]+\.py)`", definition)


def test_the_parts():
    assert list(entries()) == [PUBLIC, SOURCE]


@pytest.mark.parametrize("word", COINAGES)
def test_a_word_that_everybody_can_meet(word):
    """Has its entry in the part for everybody; a word that is in the other part stays out of their sight."""
    met = re.search(COINAGES[word], public_text())
    assert word in entries()[PUBLIC] or (not met and word in entries()[SOURCE]), met


def test_the_words_are_met():
    """Else the test above would look for the wrong ones."""
    met = [word for word, phrase in COINAGES.items() if re.search(phrase, public_text())]
    assert len(met) > 0.6 * len(COINAGES)


@pytest.mark.parametrize("word", IDENTIFIERS)
def test_a_word_of_the_source(word):
    """Its entry names the files that have it."""
    files = files_of(entries()[SOURCE][word])
    assert re.search(IDENTIFIERS[word], "".join((ROOT / file).read_text() for file in files)), files


def test_words_of_the_source_are_all_tested():
    assert entries()[SOURCE].keys() == IDENTIFIERS.keys()


@pytest.mark.parametrize("part", [PUBLIC, SOURCE])
def test_entries_are_in_order(part):
    words = [word.lower() for word in entries()[part]]
    assert words == sorted(words)
    assert len(words) > 20


def test_no_word_is_in_both_parts():
    assert not entries()[PUBLIC].keys() & entries()[SOURCE].keys()


def test_entries_take_a_sentence_or_two():
    for part in entries().values():
        for word, definition in part.items():
            ends = re.findall(r"[.;](?= [A-Z`$]|$)", re.sub(r"`[^`]*`", "code", definition))
            assert 1 <= len(ends) <= 2, (word, definition)
            assert definition.endswith("."), word


def test_links_within_the_glossary():
    anchors = {
        re.sub(r"[^\w -]", "", w).lower().replace(" ", "-") for p in entries().values() for w in p
    }
    used = set(re.findall(r"\]\(#([\w-]+)\)", GLOSSARY.read_text()))
    assert used <= anchors
    assert len(used) > 20


@pytest.mark.parametrize("page", ["activation-space", "curvature", "probes", "rule"])
def test_terms_in_bold_have_an_entry(page):
    """What a page introduces; bold at the beginning of a list's item is a title."""
    text = without_code((DOCS / "concepts" / f"{page}.md").read_text())
    words = {word.lower() for part in entries().values() for word in part}
    terms = re.findall(r"(?<![-.] )\*\*([a-zA-Z][\w' -]*)\*\*(?! sends)", " ".join(text.split()))
    assert [term for term in terms if term.lower() not in words] == []
    assert terms
