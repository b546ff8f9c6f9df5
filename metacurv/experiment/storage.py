"""Files that survive a kill at any moment: whole or not there, and damage is noticed."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import torch

TEMPORARY = ".metacurv-partial"
_DIGEST_BYTES = 32


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write ``path`` so that whoever reads it, whenever, sees the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write strict JSON: a number that is not finite becomes null, as JSON has no NaN."""
    write_atomically(
        path, json.dumps(strict(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    )


def strict(value: Any) -> Any:
    """``value`` with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: strict(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [strict(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in ``path``, or None where there is none or it does not parse as one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain Python values) behind the SHA-256 of its bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomically(path, hashlib.sha256(payload).digest() + payload)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """The state in ``path``, or None where the file is missing or damaged.

    Runs no code from the file.
    """
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    digest, payload = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(payload), weights_only=True)
    return state


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writes that a kill cut short."""
    for path in folder.glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)
