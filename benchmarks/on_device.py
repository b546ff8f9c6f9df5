"""Every op, and whole training steps, on one device: against torch's own operations, with results checked beside the times.

    python benchmarks/report.py --device cuda

``--device cpu`` runs all of it but captured graphs. A ratio is the other's median time over ours in
one run; bandwidth is that of what an op has to read and write. Results go to benchmarks/results/DEVICE.json as they come.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import metacurv
from benchmarks import device_ddp
from benchmarks.device_case import Outcome, measure
from benchmarks.device_ops import op_cases
from benchmarks.device_steps import step_cases

# Sizes and seconds with which all of it runs in a moment, on two cores too.
SMALL: dict[str, Any] = {"numel": 5000, "width": 16, "steps": 2, "seconds": 0.001}


def run(
    device: str,
    out: Path,
    *,
    numel: int = 1 << 26,
    width: int = 1024,
    steps: int = 100,
    seconds: float = 2.0,
) -> int:
    """Measures all, prints a table, writes ``out``. Returns: 1 where a result is wrong, else 0."""
    print(f"{'':52} {'ours, us':>12} {'torch, us':>12} {'ratio':>7} {'GB/s':>7}")
    outcomes: list[Outcome] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    for found in _outcomes(device, numel, width, steps, seconds):
        print(
            f"{found.name:52} {found.ours:12.1f} {found.other:12.1f} {found.ratio:7.2f} {found.bandwidth:7.0f}"
            + ("" if found.agree else "  WRONG"),
            flush=True,
        )
        outcomes.append(found)
        out.write_text(json.dumps(_content(device, outcomes), indent=1) + "\n")
    if why := device_ddp.why_not(device):
        print(why)
    print(f"written to {out}")
    return 0 if all(found.agree for found in outcomes) else 1


def _outcomes(device: str, numel: int, width: int, steps: int, seconds: float) -> Iterator[Outcome]:
    for case in op_cases(device, numel):
        yield measure(case, seconds)
    for case in step_cases(device, width, steps):
        yield measure(case, seconds)
    if not device_ddp.why_not(device):
        yield from device_ddp.ddp_outcomes(device, width, steps)


def _content(device: str, outcomes: list[Outcome]) -> dict[str, object]:
    return {
        "command": f"python benchmarks/report.py --device {device}",
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "cuda": torch.version.cuda,
        "metacurv": metacurv.build_info(),
        "outcomes": [asdict(found) for found in outcomes],
    }


def why_not(device: str) -> str:
    """Why nothing can be measured there; "" where it can."""
    if device == "cuda" and not torch.cuda.is_available():
        return "torch.cuda.is_available() is False"
    if device == "cuda" and not metacurv.cuda_compiled():
        return (
            "metacurv was built without CUDA kernels: pip install . with METACURV_CUDA=1 says why"
        )
    if not metacurv.native_available():
        return f"there are no compiled kernels: {metacurv.build_info()}"
    return ""
