"""Runs kernels of self_test.cu: python tests/cuda/emulation/self_test.py LIBRARY NAME BLOCKS [NAME BLOCKS ...] [--workers N]"""

from __future__ import annotations

import argparse
import ctypes
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.cuda.emulation.emulated import Schedule, set_schedule

POISON = -7.0


class SelfTest:
    """A library of self_test.cu that ``build`` made."""

    def __init__(self, library: Path) -> None:
        self._c = ctypes.CDLL(str(library))
        self._c.emulation_fault.restype = ctypes.c_char_p

    def run(
        self, name: str, blocks: int, threads: int, out: list[float], schedule: Schedule
    ) -> list[float]:
        """What the kernel makes of ``out``, float64.

        Raises:
            RuntimeError: the emulator saw a fault; the message says which.
        """
        set_schedule(self._c, schedule)
        memory = (ctypes.c_double * len(out))(*out)
        done = self._c.self_test(name.encode(), blocks, threads, memory)
        if done < 0:
            raise LookupError(f"self_test.cu has no kernel {name}")
        if not done:
            raise RuntimeError(self._c.emulation_fault().decode())
        return list(memory)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", type=Path)
    parser.add_argument("kernels", nargs="+", metavar="NAME BLOCKS")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    # Random orders on two threads: blocks of one kernel run at the same time.
    order = Schedule("random", 1, workers=arguments.workers)
    kernels = SelfTest(arguments.library)
    for name, blocks in zip(arguments.kernels[::2], arguments.kernels[1::2], strict=True):
        print(name, kernels.run(name, int(blocks), 64, [0.0] * 256, order)[:10])
