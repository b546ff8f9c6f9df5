"""Draws which module imports which, before and after, and counts lines: python docs/_site/import_matrix.py TREE COMMIT

TREE is a checkout of the package as it was before, at COMMIT. A dot stands in the row of a module and in
the column of one that it imports; modules are ordered by room, so that blocks on the diagonal are rooms and a dot below the
diagonal is an import that points up. The pictures and docs/develop/imports.json go into docs/develop/architecture.md.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import architecture
import matplotlib

sys.path.append(str(architecture.ROOT))
matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.page_block import write_block

OUT = architecture.DEVELOP / "imports.json"
PICTURE = architecture.DEVELOP / "imports.png"
SUFFIXES = {".py", ".h", ".cpp", ".cu", ".cuh"}
LEFT_OUT = {"experiment", "integrations"}  # as the count of product lines leaves them out


def edges(root: Path) -> dict[str, set[str]]:
    """Each module of the package under ``root``, with the modules of the package that it imports."""
    architecture.ROOT = root
    found = {module.name: module for module in architecture.modules()}
    return {
        name: {
            known
            for known in map(lambda n: longest(n, found), architecture.imports(module))
            if known
        }
        - {name}
        for name, module in found.items()
        if name.split(".")[1:2]
        and name.split(".")[1] not in LEFT_OUT | architecture.EVERYWHERE
        and not module.is_package
    }


def longest(name: str, known: dict[str, Any]) -> str | None:
    """The module that a full name lies in."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def height(name: str, graph: dict[str, set[str]], known: dict[str, int]) -> int:
    """The length of the longest way of imports below a module."""
    if name not in known:
        known[name] = 0
        known[name] = 1 + max((height(n, graph, known) for n in graph.get(name, ())), default=0)
    return known[name]


def ordered(graph: dict[str, set[str]]) -> list[str]:
    """The modules by folder, folders and modules with the longest ways of imports below them first."""

    def folder(name: str) -> str:
        return name.rpartition(".")[0]

    folders: dict[str, set[str]] = {folder(name): set() for name in graph}
    for name, targets in graph.items():
        folders[folder(name)] |= {folder(t) for t in targets} & folders.keys() - {folder(name)}
    of_folders: dict[str, int] = {}
    of_modules: dict[str, int] = {}
    return sorted(
        graph,
        key=lambda name: (
            -height(folder(name), folders, of_folders),
            folder(name),
            -height(name, graph, of_modules),
            name,
        ),
    )


def draw(ax: Axes, graph: dict[str, set[str]], title: str) -> None:
    """One matrix, with a frame around each folder."""
    order = ordered(graph)
    at = {name: i for i, name in enumerate(order)}
    dots = [(at[t], i) for i, name in enumerate(order) for t in graph[name] if t in at]
    ax.scatter(*zip(*dots, strict=True), s=3, color="#3f51b5", linewidths=0)
    start = 0
    for i in range(1, len(order) + 1):
        if i == len(order) or order[i].rpartition(".")[0] != order[start].rpartition(".")[0]:
            box = plt.Rectangle(
                (start - 0.5, start - 0.5), i - start, i - start, fill=False, lw=0.8
            )
            ax.add_patch(box)
            if i - start > 4:
                label = order[start].rpartition(".")[0].removeprefix("metacurv.")
                has_room = start > 0.2 * len(order)  # on the left, where there are few dots
                at_x, side = (start - 1.5, "right") if has_room else (i + 0.5, "left")
                ax.annotate(label, (at_x, (start + i) / 2), fontsize=6, va="center", ha=side)
            start = i
    ax.set(xlim=(-1, len(order) + 12), ylim=(len(order), -1), xticks=[], yticks=[], aspect="equal")
    ax.set_title(f"{title}: {len(order)} modules, {len(dots)} imports", fontsize=9)


def lines(root: Path) -> dict[str, int]:
    """Lines of Python, C++ and CUDA by folder, without what the count of product lines leaves out."""
    count: dict[str, int] = {}
    for top in ("metacurv", "csrc"):
        for path in sorted((root / top).rglob("*")):
            parts = path.relative_to(root).parts
            if path.suffix in SUFFIXES and not LEFT_OUT & set(parts):
                folder = "/".join(parts[:-1])
                count[folder] = count.get(folder, 0) + len(path.read_text().splitlines())
    return count


def kinds(root: Path) -> dict[str, int]:
    """Lines of Python among them, by what they are."""
    count = {"code": 0, "docstrings": 0, "blank": 0, "imports": 0, "comments": 0}
    for path in sorted((root / "metacurv").rglob("*.py")):
        if LEFT_OUT & set(path.relative_to(root).parts):
            continue
        text = path.read_text()
        lines, nodes = text.splitlines(), list(ast.walk(ast.parse(text)))
        kind = {n: "comments" for n, line in enumerate(lines, 1) if line.lstrip().startswith("#")}
        for node in nodes:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                kind |= dict.fromkeys(range(node.lineno, (node.end_lineno or 0) + 1), "imports")
            has_docstring = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            if isinstance(node, has_docstring) and ast.get_docstring(node):
                first = node.body[0]
                kind |= dict.fromkeys(
                    range(first.lineno, (first.end_lineno or 0) + 1), "docstrings"
                )
        kind |= {n: "blank" for n, line in enumerate(lines, 1) if not line.strip()}
        for n in range(1, len(lines) + 1):
            count[kind.get(n, "code")] += 1
    return count


def page_block(stored: dict[str, Any]) -> str:
    """The table of lines by folder, of those that both have and those that one of them has."""
    before, after = stored["before"], stored["after"]
    rows = [
        f"| {folder} | {before.get(folder, '')} | {after.get(folder, '')} |"
        for folder in sorted({*before, *after})
    ]
    total = f"| all | {sum(before.values())} | {sum(after.values())} |"
    of = ", ".join(f"{n:,} {what}" for what, n in stored["python"].items())
    table = [f"| folder | `{stored['commit']}` | now |", "|---|---|---|", *rows, total]
    return "\n".join([*table, "", f"The Python lines of now are: {of}."])


def main() -> None:
    here, before = architecture.ROOT, Path(sys.argv[1]).resolve()
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.2), layout="constrained")
    for ax, root, title in zip(axes, (before, here), ("before", "after"), strict=True):
        draw(ax, edges(root), title)
    figure.savefig(PICTURE, dpi=130)
    stored = {
        "commit": sys.argv[2],
        "before": lines(before),
        "after": lines(here),
        "python": kinds(here),
    }
    OUT.write_text(json.dumps(stored, indent=1) + "\n")
    write_block(architecture.DEVELOP / "architecture.md", "lines", page_block(stored))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main()
