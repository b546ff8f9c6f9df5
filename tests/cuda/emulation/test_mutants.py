"""The script that plants faults: what it plants, and that a fault which no check sees makes it fail."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.cuda.emulation import planted
from tests.cuda.emulation.build import HERE, BuildError, build
from tests.cuda.emulation.mutant_table import KEPT, read
from tests.cuda.emulation.mutants import compiler_verdict, verdict


def test_every_barrier_mask_and_guard_is_planted() -> None:
    """Found in the sources another way."""
    found = list(planted.faults())
    for text, kind in (
        ("__syncthreads();", "no __syncthreads"),
        ("__syncwarp();", "no __syncwarp"),
        ("return;", "no return"),
        ("0xffffffffu", "a lane less in the mask"),
    ):
        lines = [
            (path.name, number)
            for path in planted.sources()
            for number, line in enumerate(path.read_text().splitlines(), 1)
            if text in line.partition("//")[0]
        ]
        assert lines, text
        assert [(f.file, f.line) for f in found if f.kind == kind] == lines
    assert len(found) > 100
    assert all(fault.before != fault.after for fault in found)


def test_every_exception_is_a_line_of_the_sources() -> None:
    """One that matches nothing any more would hide nothing, or something else."""
    hidden = [fault for fault in planted.faults() if planted.is_equivalent(fault)]
    assert len(hidden) == len(planted.EQUIVALENT)
    for file, line, kind in planted.EQUIVALENT:
        assert any(
            (f.file, f.kind) == (file, kind) and f"{f.code}\n".startswith(line) for f in hidden
        ), (file, line, kind)


def test_the_kept_table_is_of_these_sources() -> None:
    """Lines may have moved; one that was changed asks for: python tests/cuda/emulation/mutants.py --keep --missing."""
    rows = read(KEPT)
    assert Counter((row.file, row.kind, row.code) for row in rows) == Counter(
        (fault.file, fault.kind, fault.code)
        for fault in planted.faults()
        if not planted.is_equivalent(fault)
    )
    assert all(row.caught_by for row in rows)


@pytest.mark.parametrize(
    ("check", "code", "stdout", "stderr", "expected"),
    [
        ("values", 0, "", "", ""),
        ("values", 1, "signed_sum, Schedule(...): not what the twin gives", "", "values"),
        ("values", 1, "", "x.cuh:3:4: runtime error: index 9", "bounds and alignment"),
        ("values", -11, "", "", "values: SIGSEGV"),
        ("launches", 1, "1 failed, 2 passed", "", "launches"),
        ("AddressSanitizer", 1, "", "==7==ERROR: AddressSanitizer: heap-buffer-overflow", "AddressSanitizer"),
        ("ThreadSanitizer", 66, "", "WARNING: ThreadSanitizer: data race", "ThreadSanitizer"),
    ],
)  # fmt: skip
def test_what_a_check_sees(check: str, code: int, stdout: str, stderr: str, expected: str) -> None:
    assert verdict(check, subprocess.CompletedProcess([], code, stdout, stderr)) == expected


@pytest.mark.parametrize(
    ("code", "stderr"),
    [
        (1, "ModuleNotFoundError: No module named 'torch'"),
        (-9, ""),  # as where memory ran out
        (-15, ""),  # as where somebody or a time limit stopped it
        (-2, ""),
        (1, "==7==ERROR: AddressSanitizer failed to allocate 0x8000 bytes"),
        (1, "==7==ERROR: AddressSanitizer: out-of-memory: allocator is trying to allocate"),
        (66, "FATAL: ThreadSanitizer: unexpected memory mapping"),
    ],
)
def test_a_check_that_did_not_run_saw_nothing(code: int, stderr: str) -> None:
    with pytest.raises(RuntimeError, match="did not run"):
        verdict("ThreadSanitizer", subprocess.CompletedProcess([], code, "", stderr))


@pytest.mark.slow
def test_what_the_compiler_sees(tmp_path: Path) -> None:
    """A line that it refuses; not that it cannot link, or was killed."""
    source = tmp_path / "csrc" / "cuda" / "wrong.cu"
    source.parent.mkdir(parents=True)
    source.write_text("int one() { return two; }\n")
    with pytest.raises(BuildError) as refused:
        build(tmp_path / "build", csrc=tmp_path / "csrc", only=())
    assert compiler_verdict(refused.value) == "compiler"
    for said in (
        "g++: fatal error: Killed signal terminated program cc1plus",
        "/usr/bin/ld: final link failed: No space left on device",
        "x.cu:3:4: internal compiler error: Segmentation fault",
        "x.cu:3:4: error: \ninternal compiler error: out of memory",
    ):
        with pytest.raises(RuntimeError, match="did not run"):
            compiler_verdict(BuildError(said))


@pytest.mark.slow
def test_a_missing_barrier_is_seen_and_what_no_check_can_see_is_reported(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    options = ["--checks", "values", "--dtypes", "float32", "--out", str(table)]
    planted = ["--file", "finish_sums.cuh", "--kind", "no __syncthreads", "--invisible"]
    done = subprocess.run(
        [sys.executable, str(HERE / "mutants.py"), *options, *planted],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    *seen, last = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert seen
    assert all(line.endswith(" values") for line in seen)
    assert last.endswith("*** SURVIVES ***")
    assert f"{len(seen) + 1} faults planted, 1 survived" in done.stdout
    assert table.read_text().count("| values |") == len(seen)
