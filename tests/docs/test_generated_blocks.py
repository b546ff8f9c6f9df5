"""What stands between the marks of a page is what its script makes of the stored results."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(autouse=True)
def _benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.syspath_prepend(str(DOCS / "_site"))


def rules(name: str) -> Callable[[], str]:
    def made() -> str:
        text = import_module("benchmarks.publish_rules").BLOCKS[name]()
        assert isinstance(text, str)
        return text

    return made


def speed() -> str:
    report = import_module("benchmarks.report")
    stored = json.loads((ROOT / "benchmarks/results/full.json").read_text())
    return str(report.page_block([stored], ROOT / "benchmarks/results/speed.png"))


def install() -> str:
    stored = json.loads((ROOT / "benchmarks/results/install.json").read_text())
    return str(import_module("benchmarks.install_times").page_table(stored))


def roads() -> str:
    stored = json.loads((ROOT / "benchmarks/results/roads.json").read_text())
    return str(import_module("benchmarks.road_page").page_block(stored))


def eigenvalues() -> str:
    stored = json.loads((ROOT / "benchmarks/results/eigenvalues.json").read_text())
    return str(import_module("benchmarks.eigenvalues").page_block(stored))


def real_networks() -> str:
    stored = json.loads((ROOT / "benchmarks/results/real_networks.json").read_text())
    return str(import_module("benchmarks.real_networks").page_block(stored))


def vocabulary() -> str:
    stored = json.loads((ROOT / "benchmarks/results/wide_vocabulary.json").read_text())
    return str(import_module("benchmarks.wide_vocabulary").page_block(stored))


def lines() -> str:
    site = import_module("import_matrix")
    return str(site.page_block(json.loads(site.OUT.read_text())))


def suite() -> str:
    stored = json.loads((ROOT / "benchmarks/results/suite_times.json").read_text())
    return str(import_module("benchmarks.suite_times").page_block(stored))


def experiment() -> str:
    script = ROOT / "docs/mnist1d/publish.py"
    spec = spec_from_file_location("publish", script)
    assert spec is not None
    assert spec.loader is not None
    publish = module_from_spec(spec)
    spec.loader.exec_module(publish)
    return str(publish.table(json.loads((script.parent / "summary.json").read_text())))


@pytest.mark.parametrize(
    ("page", "name", "made"),
    [
        ("develop/architecture.md", "roads", roads),
        ("results/learning-rate.md", "rules", rules("rules")),
        ("results/learning-rate.md", "over-tasks", rules("over-tasks")),
        ("results/learning-rate.md", "over-new-tasks", rules("over-new-tasks")),
        ("results/learning-rate.md", "held-rates", rules("held-rates")),
        ("results/learning-rate.md", "safety", rules("safety")),
        ("results/learning-rate.md", "cost", rules("cost")),
        ("results/mnist1d.md", "experiment", experiment),
        ("results/speed.md", "speed", speed),
        ("start/install.md", "install", install),
        ("develop/test.md", "suite", suite),
        ("develop/architecture.md", "lines", lines),
        ("results/eigenvalues.md", "eigenvalues", eigenvalues),
        ("results/real-networks.md", "real-networks", real_networks),
        ("results/real-networks.md", "vocabulary", vocabulary),
    ],
    ids=[
        "roads",
        "rules",
        "over-tasks",
        "over-new-tasks",
        "held-rates",
        "safety",
        "cost",
        "experiment",
        "speed",
        "install",
        "suite",
        "lines",
        "eigenvalues",
        "real networks",
        "vocabulary",
    ],
)
def test_block(page: str, name: str, made: Callable[[], str]) -> None:
    block_of = import_module("benchmarks.page_block").block_of
    assert block_of(DOCS / page, name) == made().strip("\n")
