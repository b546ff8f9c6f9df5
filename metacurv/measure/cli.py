"""Reads the command line, measures, and writes the report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from metacurv.measure.measurements import Settings, measure
from metacurv.measure.report import Report
from metacurv.measure.subject import Subject, load_subject

_DESCRIPTION = """
Measures the curvature of a model's loss: trace by layer, largest eigenvalues, spectral density, Frobenius norm and effective
dimension, of the Hessian and of the Gauss-Newton matrix, each with its errors. MODULE:FUNCTION names a function without
arguments that returns (model, loss_fn, loader); the loader gives (inputs, targets) pairs. It is looked for in the current
folder first.

The report is written to the folder of --out after each measurement: report.html, with pictures, and report.json, with all
numbers. What cannot be measured stands in the report with the reason, and makes the exit status 1.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command, and returns its exit status."""
    given = _parser().parse_args(arguments)
    if find_spec("matplotlib") is None:
        print(
            "error: the report's pictures need matplotlib, which is not installed; install it with\n"
            "    pip install matplotlib",
            file=sys.stderr,
        )
        return 2
    try:
        subject = load_subject(given.subject, given.batches)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    settings = Settings(
        kinds=("hessian", "ggn") if given.kind == "both" else (given.kind,),
        rtol=given.rtol,
        top=given.top,
        probes=given.probes,
        steps=given.steps,
        seed=given.seed,
    )
    return _run(subject, settings, given.out)


def _run(subject: Subject, settings: Settings, folder: Path) -> int:
    report = Report(folder, subject, settings)
    for finding in measure(subject, settings):
        report.add(finding)
        print(finding.line, flush=True)
    print(f"report: {report.page}")
    return 1 if report.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m metacurv.measure",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "subject", metavar="MODULE:FUNCTION", help="what to measure, such as mymodel:make"
    )
    parser.add_argument(
        "--kind",
        choices=("hessian", "ggn", "both"),
        default="both",
        help="the matrix (default: %(default)s)",
    )
    parser.add_argument(
        "--rtol",
        type=float,
        default=0.05,
        help="standard error of the trace, relative (default: %(default)s)",
    )
    parser.add_argument(
        "--top",
        type=int,
        default=5,
        metavar="K",
        help="number of eigenvalues (default: %(default)s)",
    )
    parser.add_argument(
        "--probes",
        type=int,
        default=10,
        metavar="N",
        help="random probes for the density (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=80,
        metavar="N",
        help="products for each probe of the density (default: %(default)s)",
    )
    parser.add_argument(
        "--batches",
        type=int,
        metavar="N",
        help="only the first N batches of the loader, kept in memory (default: all)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the probes (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs") / "measure",
        metavar="FOLDER",
        help="where the report goes (default: %(default)s)",
    )
    return parser
