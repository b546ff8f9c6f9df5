"""Which GPU architectures the CUDA kernels are compiled for."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence

from build_settings import SettingError
from cuda_toolkit import CudaToolkit, CudaUnavailableError

# What the kernels are checked for without a GPU (tests/cuda/emulation): Turing to Blackwell.
CHECKED_ARCHS = ("75", "80", "86", "89", "90", "100", "120")

# Where no GPU is to be seen, each further architecture costs its share of the compilation. These
# two serve most cards: code for 8.0 runs on every 8.x, and PTX of 9.0 on everything after it.
USUAL_ARCHS = ("80", "90")

DRIVER_SECONDS = 20.0  # a machine of many GPUs takes several to wake them


def visible_archs() -> tuple[str, ...]:
    """Compute capabilities of this machine's GPUs, such as ("86", "90"), each once, in order.

    Empty where there is none and where the driver does not answer: the build goes on either way.
    """
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=DRIVER_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.findall(r"^(\d+)\.(\d)$", done.stdout, re.MULTILINE)
    return tuple(sorted({major + minor for major, minor in found}, key=int))


def choose_archs(
    toolkit: CudaToolkit, wanted: tuple[str, ...] | None, visible: Sequence[str]
) -> tuple[str, ...]:
    """The architectures to compile for, such as ("80", "90+PTX").

    Those ``wanted`` are taken as they are. Without them: those of the ``visible`` GPUs that nvcc
    knows; else the usual ones that it knows; else the oldest checked one that it knows. The newest
    also goes in as PTX, so that the driver can translate it for newer GPUs.

    Raises:
        SettingError: nvcc does not know one of those wanted.
        CudaUnavailableError: nvcc knows none.
    """
    if wanted is not None:
        return _known(toolkit, wanted)
    checked = [arch for arch in CHECKED_ARCHS if arch in toolkit.archs]
    archs = [arch for arch in visible if arch in toolkit.archs]
    archs = archs or [arch for arch in USUAL_ARCHS if arch in checked] or checked[:1]
    if not archs:
        raise CudaUnavailableError(
            f"nvcc {toolkit.version} knows none of {', '.join(CHECKED_ARCHS)}"
        )
    return (*archs[:-1], f"{archs[-1]}+PTX")


def _known(toolkit: CudaToolkit, wanted: tuple[str, ...]) -> tuple[str, ...]:
    for arch in wanted:
        # --list-gpu-code leaves out the variants sm_90a, sm_100f: judge those by their number.
        if re.sub(r"\D", "", arch) not in toolkit.archs:
            raise SettingError(
                f"METACURV_CUDA_ARCHS: nvcc {toolkit.version} does not compile for {arch!r}; "
                f"it knows {';'.join(toolkit.archs)}"
            )
    return wanted


def gencode_flags(archs: Sequence[str]) -> list[str]:
    """nvcc's flags for ``archs``: machine code of each, and PTX of those ending in "+PTX"."""
    flags = []
    for arch in dict.fromkeys(name.removesuffix("+PTX") for name in archs):
        codes = [f"sm_{arch}"] + ([f"compute_{arch}"] if f"{arch}+PTX" in archs else [])
        flags += [f"-gencode=arch=compute_{arch},code={code}" for code in codes]
    return flags


def capabilities(archs: Sequence[str]) -> str:
    """``archs`` as people write them: "8.0, 9.0+PTX"."""
    return ", ".join(re.sub(r"^(\d+)(\d)", r"\1.\2", arch) for arch in archs)
