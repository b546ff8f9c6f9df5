"""Runs the self-check of ``python -m metacurv`` for a GPU on stand-ins for CUDA tensors:

    python tests/cuda/emulation/self_check.py LIBRARY

LIBRARY is stand_in.cpp, compiled. Prints the name of each check, and what it finds wrong, if anything: mostly tensors on the
host where the device is asked for, and the other way round. Kernels are not seen here, as ops run on the CPU.
"""

from __future__ import annotations

import ctypes
import sys

if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1])  # before torch looks for a GPU for the first time

from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from metacurv.__main__ import checks
from metacurv.ops import _native
from tests.cuda.emulation.stand_in import stand_in_device


def main() -> None:
    # A parameter that moves to the device becomes another kind of tensor there.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _native.cuda_compiled = _native.native_available
    with stand_in_device():
        for check in checks(torch.device("cuda", 0)):
            print(f"{check.name}: {check.failure() or 'ok'}", flush=True)


if __name__ == "__main__":
    main()
