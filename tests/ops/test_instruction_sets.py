"""Every table of CPU kernels gives the same bits, each forced in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

import metacurv
from tests.helpers import needs_native, run_python
from tests.ops.bits_digest import digest

pytestmark = needs_native

SCRIPT = str(Path(__file__).with_name("bits_digest.py"))


@pytest.fixture(scope="module")
def reference_digest() -> str:
    return digest("reference")


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_same_bits(isa, reference_digest):
    run = run_python(SCRIPT, METACURV_CPU_ISA=isa)
    if "must be baseline, avx2 or avx512 and run on this CPU" in run.stderr and isa != "baseline":
        pytest.skip(f"this CPU does not run {isa}")
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == [isa, reference_digest]


def test_this_process_too(reference_digest):
    assert digest("native") == reference_digest
    assert metacurv.build_info()["cpu_isa"] in ("baseline", "avx2", "avx512")


def test_an_unknown_instruction_set_is_refused():
    run = run_python("-c", "import metacurv; metacurv.build_info()", METACURV_CPU_ISA="sse9")
    assert run.returncode != 0
    assert "METACURV_CPU_ISA must be baseline, avx2 or avx512" in run.stderr
    assert "sse9" in run.stderr
