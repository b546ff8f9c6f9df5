"""The list of what is installed, for bug reports."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import torch

import metacurv
from metacurv.ops import _native


def installed() -> list[tuple[str, str]]:
    """Returns lines of two columns, such as ("torch", "2.13.0, built for the CPU")."""
    info = metacurv.build_info()
    lines = [
        ("metacurv", f"{info['version']}, imported from {Path(metacurv.__file__).parent}"),
        ("Python", f"{platform.python_version()}, {sys.executable}"),
        ("platform", platform.platform()),
        ("CPU", f"{cpu_name()}, {_usable_cpus()} usable by this process"),
        ("torch", f"{torch.__version__}, {_torch_gpu()}"),
        ("threads", f"{torch.get_num_threads()} of torch"),
    ]
    if info["native"]:
        lines += [
            (
                "kernels",
                f"compiled by {info['compiler']} for torch {info['torch_target']} and later",
            ),
            ("instruction set", info["cpu_isa"]),
        ]
        if info["built_from"] != info["version"]:
            lines.append(("kernels' version", f"{info['built_from']}: build them anew"))
    else:
        lines += [
            ("kernels", f"NOT LOADED ({info['native_error']})"),
            (
                "to get them",
                f"{_native.how_to_get_kernels()}; see README.md, docs/develop/build.md",
            ),
        ]
    lines.append(
        (
            "CUDA kernels",
            f"compiled by CUDA {info['cuda_version']} for {info['cuda_archs'].replace(';', ', ')}"
            if _native.cuda_compiled()
            else "none",
        )
    )
    lines += [("GPU", gpu) for gpu in _gpus()] or [("GPU", "none visible")]
    settings = sorted(name for name in os.environ if name.startswith("METACURV_"))
    return lines + [(name, os.environ[name]) for name in settings]


def cpu_name() -> str:
    """Returns the name from Linux's list of CPUs, or what Python knows."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    names = [
        line.partition(":")[2].strip() for line in text.splitlines() if line[:10] == "model name"
    ]
    return names[0] if names else platform.processor() or platform.machine()


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _torch_gpu() -> str:
    """Says what torch itself was built for."""
    if torch.version.cuda:
        return f"built for CUDA {torch.version.cuda}"
    return f"built for ROCm {torch.version.hip}" if torch.version.hip else "built for the CPU"


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        memory = gpu.total_memory / 2**30
        found.append(f"cuda:{index}, {gpu.name}, sm_{gpu.major}{gpu.minor}, {memory:.0f} GiB")
    return found
