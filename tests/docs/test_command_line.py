"""docs/reference/command-line.md has each option of the experiments, with its default, and each variable of a build."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pytest

from metacurv.experiment import options

ROOT = Path(__file__).resolve().parents[2]
# The last place to look: the metacurv that is tested need not be the one that lies beside benchmarks/.
sys.path.append(str(ROOT))
from benchmarks.learning_rates import options as rules_options  # noqa: E402

TEXT = (ROOT / "docs/reference/command-line.md").read_text()
ROW = re.compile(r"^\| `(--[\w-]+)[^`]*` \|([^|]*)\|", re.MULTILINE)


def section(title: str) -> str:
    return TEXT.split(f"## `{title}`\n")[1].split("\n## ")[0]


@pytest.mark.parametrize(
    ("title", "parser"),
    [
        ("python -m metacurv.experiment", options.build_parser()),
        ("python -m benchmarks.learning_rates", rules_options.build_parser()),
    ],
    ids=["experiment", "rules"],
)
def test_options(title: str, parser: argparse.ArgumentParser) -> None:
    told = {name for name, _ in ROW.findall(section(title))}
    assert told == set(re.findall(r"--[\w-]+", parser.format_usage())) - {"--help"}


def test_defaults() -> None:
    parser = options.build_parser()
    config = options.to_config(parser, parser.parse_args([]))
    told = dict(ROW.findall(section("python -m metacurv.experiment")))
    for option, default in told.items():
        value = getattr(config, option.removeprefix("--").replace("-", "_"), None)
        if default.strip() and value is not None:
            assert default.strip() == (
                " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            )
    assert told["--alpha"].strip() == " ".join(map(str, config.alphas))


def test_variables() -> None:
    source = (ROOT / "build_backend/build_settings.py").read_text()
    read = set(re.findall(r"METACURV_[A-Z_]+", source)) | {"METACURV_CPU_ISA", "METACURV_CACHE"}
    assert set(re.findall(r"^\| `(METACURV_[A-Z_]+)`", TEXT, re.MULTILINE)) == read
