"""How the site's hooks change pages. Some need what the extra docs brings."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path, PurePosixPath
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def hook(name: str) -> ModuleType:
    spec = spec_from_file_location(f"site_{name}", ROOT / f"docs/_site/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _hooks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As mkdocs does while it loads one."""
    monkeypatch.syspath_prepend(str(ROOT / "docs/_site"))


@pytest.mark.parametrize(
    ("markdown", "made"),
    [
        ("text\n- a\n- b\n", "text\n\n- a\n- b\n"),
        ("text\n1. a\n2. b\n", "text\n\n1. a\n2. b\n"),
        ("- a\n  - b\n\ntext\n  - c\n", "- a\n    - b\n\ntext\n\n  - c\n"),
        ("text 3\n- 2 is 1\n", "text 3\n\n- 2 is 1\n"),
        ("text\n2. as on GitHub no list\n", "text\n2. as on GitHub no list\n"),
        ("```diff\ntext\n- a\n```\n", "```diff\ntext\n- a\n```\n"),
    ],
)
def test_lists(markdown: str, made: str) -> None:
    assert hook("lists").on_page_markdown(markdown) == made


def test_pictures() -> None:
    made = hook("pictures").on_page_content('<p><img alt="a" src="../x.png" /></p>')
    assert made == ('<p><a class="picture" href="../x.png"><img alt="a" src="../x.png" /></a></p>')


def page(path: str) -> Any:
    return SimpleNamespace(file=SimpleNamespace(src_uri=path), meta={})


def test_formulas() -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    formulas = hook("formulas")
    made = formulas.on_page_content(
        r'<p><span class="arithmatex">\(a &lt; b^2\)</span></p>', page=page("x.md")
    )
    assert '<span class="formula"><math' in made
    assert "<msup>" in made
    assert "arithmatex" not in made
    with pytest.raises(Exception, match=r"x\.md: latex2mathml cannot make \\nonsense of"):
        formulas.on_page_content(r'<div class="arithmatex">\[\nonsense\]</div>', page=page("x.md"))


@pytest.mark.parametrize(
    ("link", "made"),
    [
        ("![p](../../benchmarks/results/speed.png)", "![p](../repository/benchmarks/results/speed.png)"),
        ("[c](../../CHANGELOG.md#added)", "[c](../repository/CHANGELOG.md#added)"),
        ("[s](../../metacurv/__main__.py)", "[s](../repository/metacurv/__main__.py.md)"),
        ("[d](../../benchmarks/results/rules)", "d"),
        ("[p](speed.md)", "[p](speed.md)"),
        ("[w](https://example.org/a.md)", "[w](https://example.org/a.md)"),
        ("[nowhere](../../no.md)", "[nowhere](../../no.md)"),
        ("[h](#here)", "[h](#here)"),
        ("```text\n[c](../../CHANGELOG.md)\n```", "```text\n[c](../../CHANGELOG.md)\n```"),
    ],
)  # fmt: skip
def test_links_to_files_of_the_repository(link: str, made: str) -> None:
    pytest.importorskip("mkdocs")
    found = hook("repository_files").on_page_markdown(link, page=page("results/speed.md"))
    assert found == made


def test_links_on_a_page_that_was_taken_in() -> None:
    pytest.importorskip("mkdocs")
    taken = page("repository/CONTRIBUTING.md")
    made = hook("repository_files").on_page_markdown("[c](docs/cuda.md)", page=taken)
    assert made == "[c](../cuda.md)"
    assert taken.meta["search"] == {"exclude": True}


def test_links_that_a_page_has() -> None:
    pytest.importorskip("mkdocs")
    markdown = "[a](../../CHANGELOG.md) [b](speed.md)\n```\n[c](../../LICENSE)\n```\n"
    found = hook("repository_files").linked(PurePosixPath("docs/results/growth.md"), markdown)
    assert [str(path) for path in found] == ["CHANGELOG.md", "docs/results/speed.md"]
