"""Makes files of the repository that a page links to part of the site, so that the same Markdown works on GitHub.

A page says ``../../benchmarks/results/speed.png`` or ``../CHANGELOG.md``, as GitHub wants it. Here that becomes a file of the
site below ``repository/``: pictures and data as they are, Markdown as a page (with what it links to in turn), source code
as a page that shows it. A link to a folder, which a site cannot show, becomes plain text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from fences import lines_of
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "repository"
# Shown on a page of its own, in the language of this name.
LANGUAGES = {
    ".cpp": "cpp",
    ".cu": "cuda",
    ".cuh": "cuda",
    ".h": "cpp",
    ".py": "python",
    ".toml": "toml",
    ".yml": "yaml",
}
LINK = re.compile(
    r"\[(?P<text>[^\[\]]*)\]\((?P<target>[^)\s#]+)(?P<rest>(?:#[^)\s]*)?(?:\s+\"[^\"]*\")?)\)"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what pages link to, and what those pages link to."""
    waiting = [source_of(file) for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        for path in linked(page, (ROOT / page).read_text()):
            if path in seen or not (ROOT / path).is_file():
                continue
            seen.add(path)
            file = files.get_file_from_path(str(site_path(path)))
            if file is None:
                files.append(taken_in(path, config))
                if path.suffix == ".md":
                    waiting.append(path)
            elif file.inclusion.is_excluded():  # in docs/, and no page
                file.inclusion = InclusionLevel.NOT_IN_NAV
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Points the links of a page to where their files are on the site."""
    source = source_of(page.file)
    if source.parts[0] != "docs":
        page.meta["search"] = {"exclude": True}
    if not (ROOT / source).is_file():  # a page made of source code
        return markdown
    folder = PurePosixPath(page.file.src_uri).parent

    def moved(link: re.Match[str]) -> str:
        path = resolved(source, link["target"])
        if path is None:
            return link[0]
        if (ROOT / path).is_dir():
            return link["text"]
        target = os.path.relpath(site_path(path), folder)
        return f"[{link['text']}]({target}{link['rest']})"

    return outside_code(markdown, lambda line: LINK.sub(moved, line))


def linked(page: PurePosixPath, markdown: str) -> Iterator[PurePosixPath]:
    """The files of the repository, relative to its root, that the Markdown of ``page`` links to."""
    targets: list[str] = []

    def note(link: re.Match[str]) -> str:
        targets.append(link["target"])
        return link[0]

    outside_code(markdown, lambda line: LINK.sub(note, line))
    for target in targets:
        path = resolved(page, target)
        if path is not None:
            yield path


def outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """``markdown`` with its lines changed, but for those in fences."""
    return "".join(line if is_code else change(line) for line, is_code in lines_of(markdown))


def resolved(page: PurePosixPath, target: str) -> PurePosixPath | None:
    """The path from the root of what a link on ``page`` names; None where that is not in the repository."""
    if "://" in target or target.startswith(("mailto:", "/")):
        return None
    path = PurePosixPath(os.path.normpath(page.parent / target))
    return path if ".." not in path.parts and (ROOT / path).exists() else None


def source_of(file: File) -> PurePosixPath:
    """Where in the repository a page comes from."""
    path = PurePosixPath(file.src_uri)
    return path.relative_to(FOLDER) if path.parts[0] == FOLDER else "docs" / path


def site_path(path: PurePosixPath) -> PurePosixPath:
    """The site's name of a file of the repository."""
    if path.suffix in LANGUAGES:
        path = path.with_name(f"{path.name}.md")
    elif path.parts[0] == "docs":
        return path.relative_to("docs")
    return FOLDER / path


def taken_in(path: PurePosixPath, config: MkDocsConfig) -> File:
    """A file of the site for a file of the repository."""
    name = str(site_path(path))
    inclusion = InclusionLevel.NOT_IN_NAV
    if path.suffix not in LANGUAGES:
        return File.generated(config, name, abs_src_path=str(ROOT / path), inclusion=inclusion)
    code = f"# {path}\n\n````{LANGUAGES[path.suffix]}\n{(ROOT / path).read_text()}````\n"
    return File.generated(config, name, content=code, inclusion=inclusion)
