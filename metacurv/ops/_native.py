"""Loads the compiled module once and says what was built.

Importing ``metacurv._C`` registers the ops ``torch.ops.metacurv.*``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch  # before _C, which links to its libraries

from metacurv._version import __version__
from metacurv._warnings import warn_user

_C: ModuleType | None = None
_missing: str | None = None
try:
    _C = import_module("metacurv._C")
except ImportError as error:
    _missing = str(error)

if _C is not None:
    _C.build_info()  # chooses the CPU's instruction set: a METACURV_CPU_ISA that this CPU lacks raises here, with its reason

_warned = False


def native_available() -> bool:
    """Tells whether the compiled CPU kernels are loaded.

    Returns:
        True where ``metacurv._C`` was built and could be loaded. Where it is False, every op runs as its torch twin: the
            results are the same, slower, and ``build_info()["native_error"]`` gives the reason.
    """
    return _C is not None


def cuda_compiled() -> bool:
    """Tells whether the loaded binary holds CUDA kernels.

    Returns:
        True where it was compiled with nvcc. No GPU is needed for this.
    """
    return _C is not None and bool(_C.build_info()["cuda_compiled"])


@cache
def cpu_isa() -> str:
    """Returns the instruction set of the CPU kernels in use: "baseline", "avx2" or "avx512"; "" without compiled kernels."""
    return "" if _C is None else str(_C.build_info()["cpu_isa"])


def build_info() -> dict[str, Any]:
    """Describes the installation, as a report of a bug needs it. ``python -m metacurv`` prints the same and checks the kernels.

    Returns:
        A dict that always has ``version``, ``native`` (bool) and ``torch``. With the compiled module it also says how that was
            built: ``built_from``, ``compiler``, ``cpp_standard``, ``torch_target``, ``cpu_isa``, ``cuda_compiled``,
            ``cuda_version``
            and ``cuda_archs``. Without it there is ``native_error``, the reason.
    """
    info: dict[str, Any] = {
        "version": __version__,
        "native": native_available(),
        "torch": torch.__version__,
    }
    if _C is None:
        info["native_error"] = _missing
        return info
    built = _C.build_info()
    return {**built, **info, "built_from": built["version"]}


def philox4x32_10(counter: Sequence[int], key: Sequence[int]) -> tuple[int, ...] | None:
    """One block of the compiled generator: counter [4] and key [2] of uint32 to four uint32; None where it is not loaded."""
    return None if _C is None else tuple(_C.philox4x32_10(counter, key))


def how_to_get_kernels() -> str:
    """Says what to do where the compiled module is missing."""
    source_tree = Path(__file__).resolve().parents[2]
    if (source_tree / "setup.py").exists():
        return (
            f"metacurv was imported from the source tree {source_tree}; build the kernels into it with "
            "`pip install -e .`"
        )
    return "reinstall with METACURV_REQUIRE_NATIVE=1 to see why the build failed"


def warn_fallback_once() -> None:
    """Warns, once in a process, that the torch twins do the work, and says how to get the kernels."""
    global _warned
    if _warned:
        return
    _warned = True
    warn_user(
        f"metacurv runs without its compiled kernels ({_missing}): results are the same, slower. "
        f"{how_to_get_kernels()}.",
        RuntimeWarning,
    )
