"""benchmarks/report.py on results made by hand: which promises are kept, which are not, what is missing, and what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {
    "cpu": {"brand_raw": "Test CPU"},
    "python_version": "3.11.7",
    "torch": "2.13.0",
    "metacurv": {"cpu_isa": "avx512", "compiler": "gcc 12", "version": "0.1.0"},
    "peers": {"pyhessian": "0.1"},
}


@pytest.fixture
def report_with_picture(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import report

    return report


@pytest.fixture
def report(report_with_picture: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script without the seconds that its picture takes."""
    monkeypatch.setattr(report_with_picture, "draw", lambda rows, path: path.touch())
    return report_with_picture


def comparison(name: str, kind: str, value: float) -> dict[str, Any]:
    """A saved benchmark whose line has ``value``, with an interval of 1 % to both sides."""
    info: dict[str, Any] = {"comparison": name}
    if kind == "copies":
        memory = {"ours_bytes": 3e6, "other_bytes": 2e6, "copy_bytes": 1e6, "copies": value}
        info["memory"] = memory
    else:
        speedup = value if kind == "faster" else 1 / value
        info["paired"] = {
            "ours_s": 2e-3,
            "other_s": 2e-3 * speedup,
            "speedup": speedup,
            "low": speedup * 0.99,
            "high": speedup * 1.01,
            "wall_speedup": speedup,
            "pairs": 100,
        }
    return {"group": "g", "name": "n", "extra_info": info, "stats": {}}


def a_run(report: ModuleType, factor: float = 1.25) -> dict[str, Any]:
    """All lines, each better than promised by ``factor``."""
    from benchmarks.table import PROMISES

    benchmarks = [
        comparison(name, line.kind, line.bound * (factor if line.kind == "faster" else 1 / factor))
        for line in PROMISES
        for name in line.keys
    ]
    benchmarks.append({"group": "g", "name": "ours", "extra_info": {}, "stats": {}})
    return {"machine_info": MACHINE, "datetime": "2026-01-02T03:04:05", "benchmarks": benchmarks}


def drop(run: dict[str, Any], name: str) -> None:
    run["benchmarks"] = [b for b in run["benchmarks"] if b["extra_info"].get("comparison") != name]


def save(folder: Path, run: dict[str, Any], name: str = "run.json") -> str:
    path = folder / name
    path.write_text(json.dumps(run))
    return str(path)


def test_all_kept(
    report_with_picture: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_with_picture
    assert report.main([save(tmp_path, a_run(report)), "--check"]) == 0
    out = capsys.readouterr().out
    assert out.count("| yes |") == len(report.rows({}))
    assert "**no**" not in out
    assert "Test CPU" in out
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def test_bounds_themselves_are_kept(report: ModuleType) -> None:
    found = report.comparisons([a_run(report, factor=1.0)])
    # 1 / (1 / bound) may be off by one unit in the last place.
    assert all(row.kept for row in report.rows(found) if row.line.kind != "time")


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("rademacher_ / 2^20 / randint_like", "faster", 39.9),
        ("signed_sum / 2^26 / sum", "time", 1.41),
        ("memory / 40-256-256-10 / K=16 / double backward", "copies", 1.01),
        # One of four that a line takes the worst of.
        ("hessian_trace / 40-100-100-10 / K=4 / PyHessian", "faster", 0.99),
        ("training step / not due / Adam", "time", 1.031),
    ],
)
def test_not_kept(
    name: str,
    kind: str,
    value: float,
    report: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = a_run(report)
    drop(run, name)
    run["benchmarks"].append(comparison(name, kind, value))
    path = save(tmp_path, run)
    assert report.main([path]) == 0
    assert report.main([path, "--check"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("not kept") == 1
    assert f"{value:g}"[:4] in captured.out


def test_missing(report: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(report)
    drop(run, "hessian_trace / 40-256-256-10 / K=64 / PyHessian")
    assert report.main([save(tmp_path, run), "--check"]) == 1
    captured = capsys.readouterr()
    assert "not measured" in captured.out
    assert captured.err.startswith("not measured: `hessian_trace`, MLP 40-256-256-10")


def test_without_races(
    report: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what is about times to an equal error may be missing."""
    run = a_run(report)
    run["benchmarks"] = [
        b for b in run["benchmarks"] if " / to " not in b["extra_info"].get("comparison", "")
    ]
    path = save(tmp_path, run)
    assert report.main([path, "--check"]) == 1
    assert report.main([path, "--check", "--without-races"]) == 0
    drop(run, "estimate_trace / relu MLP, trained / exact / BackPACK DiagHessian")
    capsys.readouterr()
    assert report.main([save(tmp_path, run), "--check", "--without-races"]) == 1
    assert capsys.readouterr().err.count("not measured") == 1


def test_nothing_measured(report: ModuleType, tmp_path: Path) -> None:
    run = {**a_run(report), "benchmarks": []}
    assert report.main([save(tmp_path, run), "--check"]) == 1


def test_time_ratio_is_inverted_with_its_interval(report: ModuleType) -> None:
    from benchmarks.table import measure

    info = comparison("x", "time", 2.0)["extra_info"]
    measured = measure("time", info)
    assert measured.value == pytest.approx(2.0)
    assert measured.interval == pytest.approx((2 / 1.01, 2 / 0.99))


def test_a_later_run_replaces(report: ModuleType, tmp_path: Path) -> None:
    name = "rademacher_ / 2^20 / randint_like"
    bad = {**a_run(report), "benchmarks": [comparison(name, "faster", 1.0)]}
    good = save(tmp_path, a_run(report), "good.json")
    assert report.main([good, save(tmp_path, bad, "bad.json"), "--check"]) == 1
    assert report.main([save(tmp_path, bad, "bad.json"), good, "--check"]) == 0


def test_promises_are_not_listed_again(
    report: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(report)
    run["benchmarks"].append(comparison("hessian_trace / net / K=16 / other", "faster", 3.0))
    report.main([save(tmp_path, run)])
    _, others = capsys.readouterr().out.split("| comparison |")
    assert "hessian_trace / net / K=16 / other" in others
    assert "PyHessian" not in others.split("\n\n")[0]


def test_update_page(report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, end = report.marks("speed")
    page = tmp_path / "speed.md"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    path = save(tmp_path, a_run(report))
    assert report.main([path, "--update-page"]) == 0
    once = page.read_text()
    assert once.startswith(f"before\n{begin}\n")
    assert once.endswith(f"\n{end}\nafter\n")
    assert "old" not in once
    assert "(speed.png)" in once
    assert report.main([path, "--update-page"]) == 0
    assert page.read_text() == once


@pytest.mark.parametrize("text", ["", "{end}{begin}", "{begin}{begin}{end}"])
def test_a_page_without_its_marks(
    text: str,
    report: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begin, end = report.marks("speed")
    page = tmp_path / "speed.md"
    page.write_text(text.format(begin=begin, end=end))
    monkeypatch.setattr(report, "PAGE", page)
    assert report.main([save(tmp_path, a_run(report)), "--update-page"]) == 2
    assert "speed.md must hold one" in capsys.readouterr().err


def test_all_saved_results_are_the_default(report: ModuleType, tmp_path: Path) -> None:
    """In the order in which they were measured; other files are other things."""
    for day, name in enumerate(("b.json", "a.json", "c.json")):
        content = {"machine_info": {}, "datetime": f"2026-01-0{9 - day}T00:00:00"}
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "growth.json").write_text("{}")
    assert [path.name for path in report.saved_results(tmp_path)] == ["c.json", "a.json", "b.json"]


def test_no_result_at_all(report: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="measure first"):
        report.saved_results(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", "not json"])
def test_files_that_are_no_results(
    text: str, report: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert report.main([str(path)]) == 2
    assert "report.py:" in capsys.readouterr().err


def test_help_of_the_script() -> None:
    """Run by its path, as README.md says, from another folder."""
    script = ROOT / "benchmarks" / "report.py"
    done = subprocess.run(
        [sys.executable, str(script), "--help"],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--update-page" in done.stdout
    assert "--benchmark-json" in done.stdout


def test_a_known_shortfall_is_said_and_does_not_fail(
    report: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "signed_sum / 2^20 / randint_like"
    run = a_run(report)
    drop(run, name)
    run["benchmarks"].append(comparison(name, "faster", 33))
    assert report.main([save(tmp_path, run), "--check"]) == 0
    out, err = capsys.readouterr()
    assert "known shortfall" in err
    assert "**no**" in out


@pytest.mark.parametrize(("value", "status"), [(33, 0), (31, 1)])
def test_slack(value: float, status: int, report: ModuleType, tmp_path: Path) -> None:
    """40 x are promised; a fifth less is 32."""
    name = "rademacher_ / 2^20 / randint_like"
    run = a_run(report)
    drop(run, name)
    run["benchmarks"].append(comparison(name, "faster", value))
    path = save(tmp_path, run)
    assert report.main([path, "--check"]) == 1
    assert report.main([path, "--check", "--slack", "0.2"]) == status
