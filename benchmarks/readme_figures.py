"""Where each number in the prose of README.md comes from; tests/docs/test_readme.py holds the two together.

Prose is everything but code, tables, links' targets and comments; years of publications need no entry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metacurv.experiment.statistics import Interval

ROOT = Path(__file__).resolve().parent.parent

NOT_PROSE = (
    re.compile(r"^(```+).*?^\1$", re.MULTILINE | re.DOTALL),
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"^\|.*$", re.MULTILINE),
    re.compile(r"`[^`\n]*`"),
    re.compile(r"(?<=\])\([^)]*\)"),
)
# Not within a name: C++17, mnist1d, sm_80, 2^20, 40-100-100-10.
NUMBER = re.compile(r"(?<![\w.^])(?<!\+\+)(?<!\w-)\d+(?:[.,]\d+)*(?![\w^]|-\d)")
YEAR = re.compile(r"(?:19|20)\d\d")


@dataclass(frozen=True)
class Figure:
    """A number as README.md writes it, and what it is.

    Attributes:
        text: the number, such as "117".
        file: below the repository's root.
        at: for JSON the way to the number (a key; in a list of objects the entry that has the key as a value), times
            ``scale``; for other files the words in which ``text`` stands there.
    """

    text: str
    file: str
    at: tuple[str, ...] | str
    scale: float = 1.0

    def holds(self) -> bool:
        """Whether the file says so, rounded to the digits of ``text``."""
        stored = (ROOT / self.file).read_text()
        if isinstance(self.at, str):
            return self.at in stored and self.text in NUMBER.findall(self.at)
        value = float(_follow(json.loads(stored), self.at)) * self.scale
        digits = len(self.text.partition(".")[2])
        return f"{value:.{digits}f}" == self.text


@dataclass(frozen=True)
class Count:
    """A number of tasks: on how many the rule's interval against ``best`` lies above 0 ("better"), below it or around it.

    Attributes:
        text: the number, as README.md writes it.
        best: "best_constant" or "best_of_grid".
        side: "better", "worse", "level", or "" for all tasks.
    """

    text: str
    best: str = "best_constant"
    side: str = ""

    def holds(self) -> bool:
        """Whether the stored results give that many."""
        tasks = json.loads((ROOT / RULES).read_text())["tasks"]
        gains = [_named(task["methods"], "directional")[f"gain_over_{self.best}"] for task in tasks]
        sides = [SIDES[Interval(**gain).side] for gain in gains]
        return self.text == str(sum(self.side in ("", side) for side in sides))


SIDES = {1: "better", 0: "level", -1: "worse"}  # of zero, on which the interval of a gain is
RULES = "benchmarks/results/rules/summary.json"
COST = "benchmarks/results/rules/cost.json"
INSTALL = "benchmarks/results/install.json"
CI = "benchmarks/results/ci_times.json"  # written by METACURV_CI_TIMES=FILE .ci/run
SUITE = "benchmarks/results/suite_times.json"

FIGURES: tuple[Figure | Count, ...] = (
    Figure("3.10", "pyproject.toml", 'requires-python = ">=3.10"'),
    Figure("1", INSTALL, ("installs", "metacurv without nvcc", "most_cpu_seconds"), 1 / 60),
    Figure("3", INSTALL, ("installs", "metacurv with nvcc", "most_cpu_seconds"), 1 / 60),
    Figure("2", CI, ("README: install and experiment",), 1 / 60),
    Figure("19", SUITE, ("whole", "wall"), 1 / 60),
    Count("15"),
    Figure("10", RULES, ("tasks", "mlp-sgd", "best_constant", "n")),
    Figure("84", "benchmarks/learning_rates/grid.py", "84 settings"),
    Figure("95", "metacurv/experiment/statistics.py", "95 % confidence limits"),
    Count("9", side="better"),
    Count("4", side="level"),
    Count("2", side="worse"),
    Count("1", best="best_of_grid", side="better"),
    Count("6", best="best_of_grid", side="level"),
    Count("8", best="best_of_grid", side="worse"),
    Figure("1.04", COST, ("tasks", "transformer", "methods", "directional", "median")),
    Figure("1.12", COST, ("tasks", "digits-mlp", "methods", "directional", "median")),
)


def prose_numbers(markdown: str) -> list[str]:
    """The numbers that need an entry, in their order."""
    for pattern in NOT_PROSE:
        markdown = pattern.sub(" ", markdown)
    return [number for number in NUMBER.findall(markdown) if not YEAR.fullmatch(number)]


def unexplained(markdown: str, figures: Sequence[Figure | Count] = FIGURES) -> list[str]:
    """Numbers without an entry."""
    known = {figure.text for figure in figures}
    return [number for number in prose_numbers(markdown) if number not in known]


def _follow(found: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        found = found[key] if isinstance(found, dict) else _named(found, key)
    return found


def _named(entries: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """The entry that has ``name`` among its values, or as its comparison (benchmarks)."""
    return next(
        entry
        for entry in entries
        if name in (*entry.values(), entry.get("extra_info", {}).get("comparison"))
    )
