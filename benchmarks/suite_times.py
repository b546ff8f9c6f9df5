"""What each folder of the test suite proves, and how long it takes.

    pytest -n auto -m "not slow" --junitxml=quick.xml
    pytest -n auto --junitxml=whole.xml
    python -m benchmarks.suite_times quick.xml [whole.xml]

The seconds of all tests of a folder, added up over the workers, go into benchmarks/results/suite_times.json, and with what the
folder proves into docs/develop/test.md.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.page_block import ROOT, write_block

RESULT = ROOT / "benchmarks" / "results" / "suite_times.json"
PAGE = ROOT / "docs" / "develop" / "test.md"
BLOCK = "suite"
PARTS = ("quick", "whole")
FOLDERS = {
    "ops": "kernels against twins: values, bits, arguments, registration, instruction sets, published vectors of Philox",
    "estimators/dense": "every method of `estimate_trace` is right, or refuses, for all networks and losses of its tables "
    "and for random ones",
    "estimators/estimate_trace": "arguments, batches, sampling, state, memory, precision, reasons and traps of the function",
    "estimators/hessian_trace": "values, errors, graphs, memory, parameters and precision of the function",
    "estimators/graph": "custom functions are checked, and what is private in torch is there",
    "estimators/mlp": "chains are recognised, and their numbers are right",
    "estimators/probes": "finite differences",
    "estimators/spectrum": "eigenvalues, density, diagonal and operator: bounds hold, bands are calibrated, arguments",
    "estimators/split": "directions for each example give the right parts; the control variate has no bias, and errors hold",
    "estimators/tangents": "probes that go through layers by rules are those of double backward",
    "estimators": "curvature along a direction, wrong input, files on the way, other libraries",
    "optim/drop_in": "a wrapped optimizer is an optimizer: state dicts, schedulers, hooks, scaler, closures, pickling, memory, "
    "DDP; a test for each promise",
    "optim/directional": "the directional rule: slope and curvature, phases, averages, resuming, the user's state, traps",
    "optim/old_checkpoints": "checkpoints that earlier versions wrote still load",
    "optim": "formulas of the rules, one face for both, wrong input",
    "distributed": "ranks read together, shards, distributed checkpoints, on two gloo processes",
    "integrations": "Trainer, Lightning and Accelerate, where they are installed",
    "cuda/emulation": "the CUDA sources are right on the host, under sanitizers and many orders of threads, and nvcc "
    "makes of them what it should",
    "cuda": "the same on a GPU (`pytest -m gpu`)",
    "self_check": "`python -m metacurv` sees what is broken",
    "measure": "the report of `python -m metacurv.measure`",
    "experiment": "the experiment, its statistics and its stored results",
    "learning_rates": "the comparison of rules: methods, tasks, statistics, stored results",
    "benchmarks": "what turns measurements into tables",
    "packaging": "the build and its variables, the source distribution, the installation without a compiler, one binary "
    "for all torches",
    "docs": "code on pages and in docstrings runs as written; links lead somewhere, figures have a source, "
    "imports point one way",
}


def folder_of(classname: str) -> str:
    """Returns the folder of a test, the longest of ``FOLDERS``, from its module's name."""
    path = "/".join(classname.removeprefix("tests.").split("."))
    known = [folder for folder in FOLDERS if path.startswith(f"{folder}/")]
    return max(known, key=len)


def times(report: Path) -> dict[str, Any]:
    """Reads a report of pytest: seconds and number of tests by folder, and the wall time of all."""
    seconds: dict[str, float] = defaultdict(float)
    tests: dict[str, int] = defaultdict(int)
    suite = ElementTree.parse(report).getroot()[0]
    for case in suite.iter("testcase"):
        if not case.attrib["classname"]:
            continue  # a module that was skipped whole
        folder = folder_of(case.attrib["classname"])
        seconds[folder] += float(case.attrib["time"])
        tests[folder] += 1
    return {
        "wall": round(float(suite.attrib["time"])),
        "seconds": {folder: round(seconds[folder], 1) for folder in FOLDERS},
        "tests": {folder: tests[folder] for folder in FOLDERS},
    }


def page_block(stored: Mapping[str, Any]) -> str:
    """Makes the table, with a column of seconds for each part that was run."""
    parts = [part for part in PARTS if part in stored]
    tests = stored[parts[-1]]["tests"]
    lines = [
        f"| `tests/...` | proves | tests | {' | '.join(f'{part}, s' for part in parts)} |",
        f"|---|---|---|{'---|' * len(parts)}",
    ]
    for folder, proves in FOLDERS.items():
        seconds = " | ".join(f"{stored[part]['seconds'][folder]:.0f}" for part in parts)
        lines.append(f"| `{folder}` | {proves} | {tests[folder]} | {seconds} |")
    cores = stored["cores"]
    walls = "; ".join(f"{part}: {stored[part]['wall']} s" for part in parts)
    lines += [
        "",
        f"Seconds of a folder are added up over {cores} workers. From start to end on {cores} cores: {walls}. The quick part "
        'is `-m "not slow"`.',
    ]
    return "\n".join(lines)


def main() -> None:
    reports = zip(PARTS, map(Path, sys.argv[1:]), strict=False)
    stored = {"cores": os.cpu_count(), **{part: times(report) for part, report in reports}}
    RESULT.write_text(json.dumps(stored, indent=1) + "\n")
    write_block(PAGE, BLOCK, page_block(stored))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main()
