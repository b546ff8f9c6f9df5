"""The emulated library, built once a session (a quarter of a minute), and nvcc where there is one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
from filelock import FileLock

from tests.cuda.emulation.build import COMPILER, build
from tests.cuda.emulation.emulated import EmulatedOps
from tests.cuda.emulation.nvcc import CudaUnavailableError, Nvcc

# A session inside a session, under a sanitizer or with a planted fault, brings the library to look at.
LIBRARY = os.environ.get("METACURV_EMULATED_LIBRARY")


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> EmulatedOps:
    """The ops of this checkout's CUDA sources."""
    if LIBRARY:
        return EmulatedOps(Path(LIBRARY))
    if shutil.which(COMPILER) is None:
        pytest.fail(f"tests/cuda/emulation needs the compiler {COMPILER} (CXX names another)")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers of this session; without them, of all sessions
    folder = shared / "emulation"
    with FileLock(shared / "emulation.lock"):
        library = folder / "libmetacurv_emulated.so"
        return EmulatedOps(library if library.exists() else build(folder))


@pytest.fixture(scope="session")
def nvcc() -> Nvcc:
    """Skips the test where there is none, which METACURV_REQUIRE_NVCC=1, as in CI, makes a failure."""
    try:
        return Nvcc.find()
    except CudaUnavailableError as error:
        no_tool(str(error))


def no_tool(why: str) -> NoReturn:
    """For what needs more than a C++ compiler."""
    if os.environ.get("METACURV_REQUIRE_NVCC") == "1":
        pytest.fail(f"METACURV_REQUIRE_NVCC=1, but {why}")
    pytest.skip(why)
