"""The rule that landed before: its metacurv is that of another checkout, and nothing else can stand in for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import metacurv
from benchmarks.learning_rates import options, searched
from benchmarks.learning_rates.catalogue import METHODS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("form", [["--searched", "{}"], ["--searched={}"]])
def test_the_checkout_is_where_metacurv_comes_from(tmp_path: Path, form: list[str]) -> None:
    (tmp_path / "metacurv").mkdir()
    (tmp_path / "metacurv" / "__init__.py").write_text("")
    program = (
        "import sys\n"
        "from benchmarks.learning_rates.__main__ import _prefer_checkout\n"
        "_prefer_checkout()\n"
        "assert 'metacurv' not in sys.modules\n"
        "import metacurv\n"
        "print(metacurv.__file__)\n"
    )
    arguments = [part.format(tmp_path) for part in form]
    command = [sys.executable, "-c", program, "--set", "new", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == str(tmp_path / "metacurv" / "__init__.py"), done.stderr


def test_it_is_known_whether_it_is_imported(tmp_path: Path) -> None:
    assert searched.is_imported(Path(metacurv.__file__).parents[1])
    assert not searched.is_imported(tmp_path)


def test_its_methods_are_the_usual_ones_with_it() -> None:
    parser = options.build_parser()
    here = str(Path(metacurv.__file__).parents[1])
    arguments = parser.parse_args(["--searched", here])
    assert options.chosen_methods(parser, arguments) == list(searched.SEARCHED)
    assert not options.trains_the_grid(arguments)
    assert set(searched.SEARCHED) <= METHODS.keys()
    with pytest.raises(SystemExit):
        options.chosen_methods(
            parser, parser.parse_args(["--searched", here, "--methods", "prodigy"])
        )
    plain = parser.parse_args([])
    assert not set(searched.SEARCHED) & set(options.chosen_methods(parser, plain))
    assert options.trains_the_grid(plain)


def test_a_summary_shows_what_there_is_of_it() -> None:
    parser = options.build_parser()
    arguments = parser.parse_args(["--summary-only", "--methods", "searched"])
    assert options.chosen_methods(parser, arguments) == list(searched.SEARCHED)
    assert options.run_folder(arguments) == ROOT / "benchmarks" / "results" / "rules"
