"""These tests run in an environment of their own, with the frameworks; without a framework its tests are left out."""

from __future__ import annotations

collect_ignore = []
for name in ("transformers", "lightning", "accelerate"):
    try:
        __import__(name)
    except ImportError:
        collect_ignore.append(f"test_{name}.py")
