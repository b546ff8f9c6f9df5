"""The mnist1d data set, generated in process (never downloaded) and cached by its arguments.

Source: Greydanus and Kobak, "Scaling down deep learning with MNIST-1D", ICML 2024.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import random
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import platformdirs
import torch
from torch import Tensor

from .storage import write_atomically

N_CLASSES = 10
N_FEATURES = 40
TRAIN_FRACTION = 0.8
# mnist1d's own defaults, written out: should a later mnist1d change them, these results stand.
ARGUMENTS: dict[str, Any] = {
    "train_split": TRAIN_FRACTION,
    "template_len": 12,
    "padding": [36, 60],
    "scale_coeff": 0.4,
    "max_translation": 48,
    "corr_noise_scale": 0.25,
    "iid_noise_scale": 2e-2,
    "shear_scale": 0.75,
    "shuffle_seq": False,
    "final_seq_length": N_FEATURES,
}
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Data:
    """The mnist1d data set as tensors; ``origin`` says in words where it came from."""

    x_train: Tensor  # [N, 40] float32
    y_train: Tensor  # [N] int64
    x_test: Tensor  # [M, 40] float32
    y_test: Tensor  # [M] int64
    origin: str


def load(num_samples: int, seed: int) -> Data:
    """Loads mnist1d with ``num_samples`` examples, four fifths of them for training, cached.

    A damaged cache file is made again. A cache that cannot be written costs a second a start and
    nothing else.
    """
    arguments = {**ARGUMENTS, "num_samples": num_samples, "seed": seed}
    path = cache_path(arguments)
    arrays = _read(path)
    if arrays is not None:
        return _as_data(arrays, f"cached in {path}")
    arrays = _generate(arguments)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub reads ** as its own keyword
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        return _as_data(arrays, f"generated, and not cached ({error})")
    return _as_data(arrays, f"generated, and cached in {path}")


def cache_path(arguments: dict[str, Any]) -> Path:
    """The cache file of these ``make_dataset`` arguments.

    It lies in the folder METACURV_CACHE, or else in the user's cache folder for metacurv.
    """
    default = platformdirs.user_cache_dir("metacurv", appauthor=False)
    folder = os.environ.get("METACURV_CACHE") or default
    version = importlib.metadata.version("mnist1d")
    key = json.dumps({"mnist1d": version, **arguments}, sort_keys=True)
    return Path(folder) / f"mnist1d-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Put the global random state of random, numpy and torch (CPU) back as it was."""
    python, pytorch = random.getstate(), torch.get_rng_state()
    legacy_numpy = np.random.get_state()  # noqa: NPY002  # the generator that mnist1d uses
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy_numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)


def _generate(arguments: dict[str, Any]) -> dict[str, np.ndarray]:
    with preserved_rng():  # make_dataset seeds the global generators
        # Imported only where needed: it takes a second, as it brings pyplot and requests along.
        from mnist1d.data import make_dataset  # type: ignore[import-untyped]

        made = make_dataset(SimpleNamespace(**arguments))
    return {
        "x_train": made["x"].astype(np.float32),
        "y_train": made["y"].astype(np.int64),
        "x_test": made["x_test"].astype(np.float32),
        "y_test": made["y_test"].astype(np.int64),
    }


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """The cached arrays, or None where the file is missing or fails the archive's checksums."""
    try:
        # np.load(path) would leave a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in _ARRAYS}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _as_data(arrays: dict[str, np.ndarray], origin: str) -> Data:
    return Data(**{name: torch.from_numpy(arrays[name]) for name in _ARRAYS}, origin=origin)
