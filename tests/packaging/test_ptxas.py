"""CI's reading of ``ptxas -v``: a spilling kernel must be seen, and so must a change of format."""

from __future__ import annotations

import pytest
from ptxas import Kernel, demangle, parse

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
ptxas info    : Used 32 registers, used 1 barriers, 360 bytes cmem[0]
"""


def test_reads_registers_stack_and_spills() -> None:
    assert parse(OUTPUT) == [
        Kernel("_Z4calmPfl", registers=8, stack=0, spills=0),
        Kernel("_ZN8metacurv9crowded_kIfEEvPf", registers=32, stack=24, spills=76),
    ]


@pytest.mark.parametrize("output", ["", OUTPUT.replace("spill stores", "spilled stores")])
def test_output_that_is_not_understood_is_an_error(output: str) -> None:
    with pytest.raises(ValueError, match=r"understood 0 of \d kernels"):
        parse(output)


def test_one_kernel_less_than_named_is_an_error() -> None:
    with pytest.raises(ValueError, match="understood 1 of 2 kernels"):
        parse(OUTPUT[: OUTPUT.rindex("Used")])


def test_demangles_kernel_names() -> None:
    assert demangle("_ZN8metacurv9crowded_kIfEEvPf") == "crowded_k<float>"
