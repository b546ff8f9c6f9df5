"""Draws the rooms of metacurv and of metacurv.estimators from the imports in the code: python docs/_site/architecture.py

A box is a room: a folder, or modules that belong together. An arrow says that a room imports another one; where a longer way
of arrows says the same, the short one is left out. Rooms stand above all that they import.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEVELOP = ROOT / "docs" / "develop"
PACKAGE = "metacurv"
EVERYWHERE = {"_validate", "_version", "_warnings"}  # small, and imported from all over: not drawn
COMPILED = "_C"


@dataclass(frozen=True)
class Picture:
    """What is drawn.

    Attributes:
        path: the picture's file.
        inside: the package whose rooms are drawn.
        rooms: each room with a few words on it, from the top: a room may import those below it, and no others.
        loose: the room of modules that lie in no folder.
    """

    path: Path
    inside: str
    rooms: Mapping[str, str]
    loose: str


WHOLE = Picture(
    DEVELOP / "architecture.svg",
    PACKAGE,
    {
        "experiment": "comparisons, with reports",
        "self_check": "python -m metacurv",
        "measure": "a report on a user's model",
        "integrations": "callbacks for frameworks",
        "optim/directional": "finds a learning rate",
        "optim/reciprocal": "lr / (1 + alpha trace)",
        "optim": "wraps an optimizer",
        "estimators": "traces, curvature along a line",
        "processes": "means and sums over ranks",
        "ops": "kernels and their torch twins",
        COMPILED: "csrc/: C++ and CUDA",
    },
    loose="",
)
ESTIMATORS = Picture(
    DEVELOP / "estimators.svg",
    f"{PACKAGE}.estimators",
    {
        "public functions": "a file each",
        "spectrum": "eigenvalues, density, diagonal",
        "select": "which method serves",
        "split": "directions by example",
        "probes": "parameter space",
        "tangents": "derivatives by rules",
        "mlp": "the plainest of graphs",
        "activation": "activation space",
        "statistics": "means, and when to stop",
        "graph": "reads autograd's graph",
        "problem": "what the user gave",
    },
    loose="public functions",
)

Graph = dict[str, set[str]]  # a room -> rooms that it imports
Places = dict[str, tuple[int, int]]

WIDTH, BOX_WIDTH, BOX_HEIGHT, GAP, TOP = 800, 240, 62, 52, 12


@dataclass(frozen=True)
class Module:
    """A file of the package."""

    name: str
    is_package: bool
    tree: ast.Module

    @property
    def package(self) -> str:
        """What its relative imports begin from."""
        return self.name if self.is_package else self.name.rpartition(".")[0]


def modules() -> Iterator[Module]:
    """All of them, in a fixed order."""
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        yield Module(name, is_package, ast.parse(path.read_text()))


def imports(module: Module) -> Iterator[str]:
    """Full names of what a module imports from the package when it runs, also inside its functions."""
    waiting: list[ast.AST] = [module.tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.package.split(".")[: len(module.package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "import_module":
            yield from (str(a.value) for a in node.args if isinstance(a, ast.Constant))
        waiting += ast.iter_child_nodes(node)


def room(name: str, public: Mapping[str, str], picture: Picture = WHOLE) -> str | None:
    """The room of a full name; None where it is not drawn or no part of the package."""
    name = public.get(name, name)
    if not f"{name}.".startswith(f"{picture.inside}.") or name == picture.inside:
        return None
    parts = name[len(picture.inside) + 1 :].split(".")
    if parts[0] in EVERYWHERE:
        return None
    if parts[0] == "__main__":
        return "self_check"
    for length in (2, 1):
        if "/".join(parts[:length]) in picture.rooms:
            return "/".join(parts[:length])
    return picture.loose or parts[0]


def read(picture: Picture = WHOLE) -> Graph:
    """The rooms and what they import."""
    found = list(modules())
    init = next(module for module in found if module.name == PACKAGE)
    public = {f"{PACKAGE}.{name.rpartition('.')[2]}": name for name in imports(init)}
    graph: Graph = {}
    for module in found:
        here = room(module.name, {}, picture)
        if here is None:
            continue
        there = {room(name, public, picture) for name in imports(module)}
        graph.setdefault(here, set()).update(name for name in there if name not in (None, here))
    for targets in list(graph.values()):
        for target in targets:
            graph.setdefault(target, set())
    return graph


def upward(graph: Graph, picture: Picture) -> list[str]:
    """Imports of a room that does not stand below the one which imports it."""
    order = list(picture.rooms)
    return [
        f"{name} imports {target}"
        for name in sorted(graph)
        for target in sorted(graph[name])
        if order.index(target) <= order.index(name)
    ]


def reach(graph: Graph, start: str) -> set[str]:
    """All rooms that arrows lead to."""
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        here = waiting.pop()
        if here not in seen:
            seen.add(here)
            waiting += graph[here]
    return seen


def circles(graph: Graph) -> list[str]:
    """Rooms that import themselves by way of others."""
    return sorted(name for name in graph if name in reach(graph, name))


def drawn_arrows(graph: Graph) -> list[tuple[str, str]]:
    """Without those that follow from others."""
    return [
        (name, target)
        for name in sorted(graph)
        for target in sorted(graph[name])
        if not any(target in reach(graph, other) for other in graph[name] - {target})
    ]


def floors(graph: Graph) -> list[list[str]]:
    """The rooms from top to bottom, each above all that it imports."""
    height: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in height:
            height[name] = 1 + max((of(target) for target in graph[name]), default=-1)
        return height[name]

    for name in sorted(graph):
        of(name)
    return [
        sorted(name for name in graph if height[name] == level)
        for level in range(max(height.values()), -1, -1)
    ]


def places(rows: Sequence[Sequence[str]], arrows: Sequence[tuple[str, str]]) -> Places:
    """The middle of each box's upper side. On its floor a box stands in the order of those that import it."""
    found: Places = {}
    for level, row in enumerate(rows):
        above = {
            name: [found[source][0] for source, target in arrows if target == name] for name in row
        }
        middle = {name: sum(xs) / len(xs) if xs else WIDTH / 2 for name, xs in above.items()}
        for column, name in enumerate(sorted(row, key=lambda name: (middle[name], name))):
            x = WIDTH * (2 * column + 1) / (2 * len(row))
            x += (WIDTH / 2 - x) / 6 * (len(row) == 2)  # nearer to the middle
            found[name] = (round(x), TOP + level * (BOX_HEIGHT + GAP))
    return found


def draw(graph: Graph, words: Mapping[str, str]) -> str:
    """The picture. Its colours are seen on white and on black."""
    if found := circles(graph):
        raise ValueError(f"rooms import each other in a circle: {', '.join(found)}")
    rows, arrows = floors(graph), drawn_arrows(graph)
    at = places(rows, arrows)
    height = TOP * 2 + len(rows) * BOX_HEIGHT + (len(rows) - 1) * GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, Helvetica, Arial, sans-serif" text-anchor="middle">',
        "<title>The rooms of metacurv and what they import</title>",
        '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M 0 0 L 10 5 L 0 10 z" fill="#888888"/></marker>',
    ]
    for source, target in arrows:
        (x, y), (to_x, to_y) = at[source], at[target]
        y += BOX_HEIGHT
        bend = (to_y - y) / 2
        parts.append(
            f'<path d="M {x} {y} C {x} {y + bend:g} {to_x} {to_y - bend:g} {to_x} {to_y}" '
            'fill="none" stroke="#888888" stroke-width="2" marker-end="url(#head)"/>'
        )
    for name in sorted(graph):
        x, y = at[name]
        parts += [
            f'<rect x="{x - BOX_WIDTH // 2}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" fill="#3f51b5"/>',
            f'<text x="{x}" y="{y + 27}" font-size="19" font-weight="600" fill="#ffffff">{escape(name)}</text>',
            f'<text x="{x}" y="{y + 48}" font-size="14" fill="#ffffff">{escape(words.get(name, ""))}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    for picture in (WHOLE, ESTIMATORS):
        picture.path.write_text(draw(read(picture), picture.rooms))
