"""PEP 517 backend: setuptools, but compiling against the torch that is already installed.

A build that is isolated from its target environment does not see that environment's torch, and
requiring torch for the build makes pip download a second one (5.5 GB with CUDA). So torch is taken
from the target environment when it is there and recent enough, and is required only otherwise.
"""

from __future__ import annotations

import re
import shutil
import site
import sys
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

OLDEST_TORCH = (2, 10)
TORCH_REQUIREMENT = "torch>=2.10"

Settings = Mapping[str, Any] | None


def target_site_dirs() -> list[str]:
    """The site-packages folders of the environment that runs this build, isolated or not.

    pip hides them by editing ``sys.path`` only, so ``site`` still knows them.
    """
    dirs = site.getsitepackages()
    if sys.prefix == sys.base_prefix:  # no virtual environment: torch may be a user install
        dirs.append(site.getusersitepackages())
    return dirs


def has_usable_torch(dirs: list[str]) -> bool:
    """Whether ``dirs`` hold a torch of at least ``OLDEST_TORCH``."""
    for torch in distributions(name="torch", path=dirs):
        numbers = re.match(r"(\d+)\.(\d+)", torch.version)
        if numbers and (int(numbers[1]), int(numbers[2])) >= OLDEST_TORCH:
            return True
    return False


def torch_requirement() -> list[str]:
    """What pip must install into the build environment besides ``build-system.requires``."""
    return [] if has_usable_torch(target_site_dirs()) else [TORCH_REQUIREMENT]


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    return []


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return torch_requirement()


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return torch_requirement()


def expose_target_torch() -> None:
    """Make the target environment's torch importable, behind what the build brought itself."""
    dirs = target_site_dirs()
    if has_usable_torch(dirs):
        sys.path.extend(d for d in dirs if d not in sys.path)


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    # setuptools packs all it finds in build/lib*, removed modules of an earlier build included.
    for stale in Path("build").glob("lib*"):
        shutil.rmtree(stale)
    expose_target_torch()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    expose_target_torch()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
