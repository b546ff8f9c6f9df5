"""What follows from the numbers is made anew from the files that are published, and the numbers stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from metacurv.experiment import cli, text_table

Experiment = Callable[..., int]
FOLLOW = ("report.txt", "summary.json", "loss_comparison.png")


@pytest.fixture
def published(tmp_path: Path, experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> Path:
    """A finished experiment without its parts, as docs/mnist1d is."""
    assert experiment("--out", tmp_path / "run") == 0
    capsys.readouterr()
    folder = tmp_path / "published"
    folder.mkdir()
    for name in (*FOLLOW, "config.json", "metrics.csv"):
        (folder / name).write_bytes((tmp_path / "run" / name).read_bytes())
    return folder


def test_everything_comes_back_as_it_was(published: Path) -> None:
    before = {path.name: path.read_bytes() for path in published.iterdir()}
    for name in FOLLOW:
        (published / name).unlink()
    assert cli.main(["--redraw", str(published)]) == 0
    assert {path.name: path.read_bytes() for path in published.iterdir()} == before


def test_names_of_earlier_versions_are_read_and_renamed(published: Path) -> None:
    path = published / "metrics.csv"
    now = path.read_text()
    assert ",reciprocal," in now
    path.write_text(now.replace(",reciprocal,", ",MetaCurvatureLR,"))
    assert cli.main(["--redraw", str(published)]) == 0
    assert path.read_text() == now


def test_it_prints_the_short_form(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--redraw", str(published)]) == 0
    assert capsys.readouterr().out.startswith(
        "\nAdam and MetaCurvatureLR(Adam) on mnist1d, 2 seeds"
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "metrics.csv").unlink(), "does not hold a whole experiment"),
        (
            lambda folder: (folder / "metrics.csv").write_text(
                "".join((folder / "metrics.csv").read_text().splitlines(keepends=True)[:-1])
            ),
            "evaluations of directional are missing",
        ),
        (
            lambda folder: (folder / "config.json").write_text(json.dumps({"stepz": 3})),
            "does not hold a whole experiment",
        ),
    ],
    ids=["no config", "no metrics", "a row short", "another's config"],
)
def test_a_folder_that_lacks_something_is_named(
    published: Path,
    damage: Callable[[Path], object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(published)
    with pytest.raises(SystemExit) as caught:
        cli.main(["--redraw", str(published)])
    assert caught.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert str(published) in error
    assert message in error


def test_a_paragraph_breaks_no_interval_and_no_path() -> None:
    text = "between [+1.0, +2.0] and a-path/with-hyphens/that-is-longer-than-a-line.png there"
    lines = text_table.paragraph(text, 18, "* ", "  ")
    assert lines == [
        "* between",
        "  [+1.0, +2.0] and",
        "  a-path/with-hyphens/that-is-longer-than-a-line.png",
        "  there",
    ]
