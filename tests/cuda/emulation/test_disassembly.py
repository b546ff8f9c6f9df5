"""The machine code: wide loads where it counts, no local memory, no more instructions than memory traffic hides."""

from __future__ import annotations

import pytest

from tests.cuda.emulation.conftest import no_tool
from tests.cuda.emulation.cuda_page import section
from tests.cuda.emulation.nvcc import Nvcc
from tests.cuda.emulation.resources import kept
from tests.cuda.emulation.sass import (
    GPUS,
    WORK,
    Codes,
    Gpu,
    Loop,
    NoDisassemblerError,
    disassembled,
    markdown,
    read,
)

# Cut from what nvdisasm 13.5 printed: a loop within a loop, and the jump to itself that ends every function.
LISTING = """\
.section .text.outer,"ax",@progbits
.text.outer:
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   ISETP.GE.AND P0, PT, R0, 0x1, PT ;
.L_x_0:
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   FADD R0, R4, R5 ;
        /*0040*/              @!P0 BRA `(.L_x_0) ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
        /*0060*/                   EXIT ;
.L_x_2:
        /*0070*/                   BRA `(.L_x_2);
.section .nv.info,"",@SHT_CUDA_INFO
"""


@pytest.fixture(scope="session")
def codes(nvcc: Nvcc, tmp_path_factory: pytest.TempPathFactory) -> Codes:
    try:
        return disassembled(nvcc, tmp_path_factory.mktemp("cubins"))
    except NoDisassemblerError as error:
        no_tool(str(error))


def test_innermost_loops_are_found() -> None:
    code = read(LISTING)["outer"]
    assert len(code.instructions) == 8
    assert [loop.instructions for loop in code.loops] == [("LDG.E.128", "FADD", "BRA")]
    assert code.loops[0].count(r"LDG\.E\.128") == 1
    assert code.loops[0].count(r"LDG\.E") == 0


def test_a_listing_that_is_not_understood_is_an_error() -> None:
    with pytest.raises(ValueError, match="no instructions found"):
        read(LISTING.replace("/*", "["))


def test_the_busiest_unit_bounds_a_loop() -> None:
    """Worked by hand for one multiprocessor of 1 Hz."""
    gpu = Gpu("one", "80", 1.0, 1, 1.0, double=32)
    assert gpu.seconds(Loop(("FADD",) * 256), 2) == 1.0  # 128 a clock
    assert gpu.seconds(Loop(("DADD",) * 64 + ("FADD",) * 64), 1) == 2.0  # 32 a clock
    assert gpu.seconds(Loop(("F2F.F64.F32", "MUFU.RCP") * 32), 1) == 4.0  # 16 a clock


@pytest.mark.slow
def test_no_local_memory(codes: Codes) -> None:
    for arch, kernels in codes.items():
        for name, code in kernels.items():
            local = [i for i in code.instructions if i.split(".")[0] in ("LDL", "STL")]
            assert not local, f"{name} on sm_{arch}"


@pytest.mark.slow
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_the_fast_path_loads_16_bytes_at_a_time(codes: Codes, gpu: Gpu) -> None:
    """Each dtype has a loop with no other global load; stores too, but for one pack of 16-bit signs that nvcc 13.0 cuts up."""
    for work in WORK:
        if work.kernel == "signed_sum_kernel":
            loop = work.find(codes[gpu.arch][work.kernel])
            assert loop.count(r"LDG.*") == loop.count(r"LDG\.E\.128") == work.count
            assert loop.count(r"STG.*") == 0
        if work.kernel == "rademacher_kernel":
            loop = work.find(codes[gpu.arch][work.kernel])
            assert loop.count(r"LDG.*") == 0
            assert loop.count(r"STG\.E\.128") >= 7


@pytest.mark.slow
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_dtypes_come_in_the_order_of_the_table(codes: Codes, gpu: Gpu) -> None:
    marks = {"float64": "DADD", "float32": "FADD", "bfloat16": "PRMT", "float16": r"HADD2\.F32"}
    for work in WORK:
        if work.what in marks and work.kernel != "rademacher_kernel":
            assert work.find(codes[gpu.arch][work.kernel]).count(marks[work.what]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_memory_is_the_bound(codes: Codes, gpu: Gpu) -> None:
    """On paper, with half of the time to spare for what the count of instructions does not see."""
    for work in WORK:
        seconds = gpu.seconds(work.find(codes[gpu.arch][work.kernel]), work.elements)
        assert seconds <= 0.7 * work.traffic / gpu.bandwidth, work


@pytest.mark.slow
def test_the_page_has_this_table(nvcc: Nvcc, codes: Codes) -> None:
    if nvcc.toolkit.version != kept()["nvcc"]:
        no_tool(f"the table of docs/cuda.md was made with nvcc {kept()['nvcc']}")
    assert section("roofline") == markdown(codes), "python tests/cuda/emulation/sass.py --update"
