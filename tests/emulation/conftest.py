"""The emulated library, built once a session (a quarter of a minute)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tests.emulation.build import COMPILER, build
from tests.emulation.emulated import EmulatedOps

# A session inside a session, under a sanitizer or with a planted fault, brings the library to look at.
LIBRARY = os.environ.get("METACURV_EMULATED_LIBRARY")


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> EmulatedOps:
    """The ops of this checkout's CUDA sources."""
    if LIBRARY:
        return EmulatedOps(Path(LIBRARY))
    if shutil.which(COMPILER) is None:
        pytest.fail(f"tests/emulation needs the compiler {COMPILER} (CXX names another)")
    shared = tmp_path_factory.getbasetemp().parent  # by all workers of pytest-xdist
    folder = shared / "emulation"
    with FileLock(shared / "emulation.lock"):
        library = folder / "libmetacurv_emulated.so"
        return EmulatedOps(library if library.exists() else build(folder))
