"""Registers, shared memory and spills as ptxas reports them: read right, and as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda.emulation.cuda_page import section
from tests.cuda.emulation.nvcc import CUDA_SOURCES, Kernel, Nvcc, demangle, parse
from tests.cuda.emulation.resources import changed, differences, kept, markdown, spilling, table

# What nvcc 13.0 printed for two kernels; the second was made to spill with __launch_bounds__.
OUTPUT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4calmPfl' for 'sm_80'
ptxas info    : Function properties for _Z4calmPfl
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 368 bytes cmem[0]
ptxas info    : Compile time = 10.081 ms
ptxas info    : Compiling entry function '_ZN8metacurv9crowded_kIfEEvPf' for 'sm_80'
ptxas info    : Function properties for _ZN8metacurv9crowded_kIfEEvPf
    24 bytes stack frame, 36 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 2080 bytes smem, 360 bytes cmem[0]
"""
CALM = Kernel("_Z4calmPfl", registers=8, stack=0, spills=0, shared=0)
CROWDED = Kernel("_ZN8metacurv9crowded_kIfEEvPf", registers=32, stack=24, spills=76, shared=2080)


def test_reads_registers_stack_spills_and_shared_memory() -> None:
    assert parse(OUTPUT) == [CALM, CROWDED]


@pytest.mark.parametrize("output", ["", OUTPUT.replace("spill stores", "spilled stores")])
def test_output_that_is_not_understood_is_an_error(output: str) -> None:
    with pytest.raises(ValueError, match=r"understood 0 of \d kernels"):
        parse(output)


def test_one_kernel_less_than_named_is_an_error() -> None:
    with pytest.raises(ValueError, match="understood 1 of 2 kernels"):
        parse(OUTPUT[: OUTPUT.rindex("Used")])


def test_demangles_kernel_names() -> None:
    assert demangle("_ZN8metacurv9crowded_kIfEEvPf") == "crowded_k<float>"


def test_spills_are_seen() -> None:
    assert spilling({"80": {"calm": CALM}}) == []
    assert spilling({"80": {"calm": CALM, "crowded": CROWDED}}) == [
        "crowded on sm_80: 76 bytes of spills, 24 bytes of stack"
    ]


def test_a_jump_is_seen() -> None:
    """The same nvcc gives the same table; another may take some registers more."""
    kept = {"calm": {"80": [32, 0], "90": [32, 64]}}
    assert differences(kept, kept, same_nvcc=True) == []
    more = {"calm": {"80": [33, 0]}}
    assert differences(more, kept, same_nvcc=True) == [
        "calm on sm_80: [registers, shared bytes] [32, 0] -> [33, 0]"
    ]
    assert differences(more, kept, same_nvcc=False) == []
    for row in ([41, 0], [32, 1025]):
        assert len(differences({"calm": {"80": row}}, kept, same_nvcc=False)) == 1
    assert differences({"other": {"80": [1, 0]}}, kept, same_nvcc=False) == [
        "calm is no longer there",
        "other is not in resources.json",
    ]


@pytest.mark.slow
def test_no_spills_and_no_jump(nvcc: Nvcc, tmp_path: Path) -> None:
    """On every architecture of the package that this nvcc knows."""
    kernels = nvcc.cubins(tmp_path, nvcc.archs)
    assert spilling(kernels) == []
    rows = table(kernels)
    print(markdown(rows))
    assert changed(rows, nvcc) == [], (
        "python tests/cuda/emulation/resources.py --update, if it is meant"
    )


def test_the_page_has_the_table_that_is_kept() -> None:
    assert section("registers") == markdown(kept()["kernels"])


@pytest.mark.slow
def test_ptx_of_the_newest(nvcc: Nvcc, tmp_path: Path) -> None:
    """What a GPU that is newer than all of them gets."""
    newest = nvcc.archs[-1]
    for source in sorted(CUDA_SOURCES.glob("*.cu")):
        text = nvcc.ptx(source, newest, tmp_path)
        assert f".target sm_{newest}" in text
        assert ".entry" in text
