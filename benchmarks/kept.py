"""Numbers that take long to find and do not change, kept in metacurv's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import platformdirs
import torch

from benchmarks.curvature_workloads import Workload
from metacurv.experiment.storage import write_atomically


def kept(what: str, workload: Workload, find: Callable[[], dict[str, float]]) -> dict[str, float]:
    """``find()``, or what it gave before for ``what``, this workload's weights and batch, and this torch.

    ``what`` names all else that the numbers depend on. Delete the folder's trace-*.json to have them found anew.
    """
    # The workload's name as well: two networks may begin with the same weights.
    digest = hashlib.sha256(f"{what} / {workload.name} / {torch.__version__}".encode())
    for tensor in (*workload.model.state_dict().values(), workload.x, workload.y):
        digest.update(tensor.detach().numpy().tobytes())
    default = platformdirs.user_cache_dir("metacurv", appauthor=False)
    folder = Path(os.environ.get("METACURV_CACHE") or default)
    path = folder / f"trace-{digest.hexdigest()[:16]}.json"
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        pass
    found = find()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found).encode())
    return found
