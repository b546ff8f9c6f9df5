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
    can_tell = hasattr(os, "sched_getaffinity")
    cpus = len(os.sched_getaffinity(0)) if can_tell else os.cpu_count() or 1
    built_for = "the CPU"
    if torch.version.cuda:
        built_for = f"CUDA {torch.version.cuda}"
    elif torch.version.hip:
        built_for = f"ROCm {torch.version.hip}"
    lines = [
        ("metacurv", f"{info['version']}, imported from {Path(metacurv.__file__).parent}"),
        ("Python", f"{platform.python_version()}, {sys.executable}"),
        ("platform", platform.platform()),
        ("CPU", f"{cpu_name()}, {cpus} usable by this process"),
        ("torch", f"{torch.__version__}, built for {built_for}"),
        ("threads", f"{torch.get_num_threads()} of torch"),
    ]
    if info["native"]:
        compiled = f"compiled by {info['compiler']} for torch {info['torch_target']} and later"
        lines += [("kernels", compiled), ("instruction set", info["cpu_isa"])]
        if info["built_from"] != info["version"]:
            lines.append(("kernels' version", f"{info['built_from']}: build them anew"))
    else:
        ways = f"{_native.how_to_get_kernels()}; see README.md, docs/develop/build.md"
        lines += [("kernels", f"NOT LOADED ({info['native_error']})"), ("to get them", ways)]
    cuda = "none"
    if _native.cuda_compiled():
        archs = info["cuda_archs"].replace(";", ", ")
        cuda = f"compiled by CUDA {info['cuda_version']} for {archs}"
    lines.append(("CUDA kernels", cuda))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(gpus):
        gpu = torch.cuda.get_device_properties(index)
        memory = gpu.total_memory / 2**30
        lines.append(
            ("GPU", f"cuda:{index}, {gpu.name}, sm_{gpu.major}{gpu.minor}, {memory:.0f} GiB")
        )
    if not gpus:
        lines.append(("GPU", "none visible"))
    settings = sorted(name for name in os.environ if name.startswith("METACURV_"))
    return lines + [(name, os.environ[name]) for name in settings]


def cpu_name() -> str:
    """Returns the name from Linux's list of CPUs, or what Python knows."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
