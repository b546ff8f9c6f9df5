"""Peak memory of a call: the most bytes of tensors that it held at once."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch


def peak_bytes(call: Callable[[], object]) -> int:
    """The peak of bytes allocated less bytes freed by torch's CPU allocator within ``call``.

    What kernels take from the C++ heap for themselves is not seen.
    """
    call()  # what is made once and kept is not the call's
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [
        (float(event["ts"]), int(event["args"]["Bytes"]))
        for event in events
        if event["name"] == "[memory]"
    ]
    peak = held = 0
    for _, change in sorted(changes, key=lambda entry: entry[0]):
        held += change
        peak = max(peak, held)
    return peak
