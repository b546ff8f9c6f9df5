"""The wheels that .ci/gpu needs beside torch and numpy, to be carried to a machine without a network."""

from __future__ import annotations

from pathlib import Path

LIMIT_MIB = 60
# With all that they need themselves: pip takes them as they are, so that it cannot touch the machine's torch.
WHEELS = (
    "execnet",
    "hypothesis",
    "iniconfig",
    "ninja",
    "packaging",
    "pluggy",
    "pybind11>=2.13",
    "pygments",
    "pytest>=8.3.5",
    "pytest-xdist>=3.6",
    "setuptools>=77",
    "sortedcontainers",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def advice(folder: Path) -> str:
    """What to carry, as a shell script that downloads it into ``folder``."""
    platforms = " ".join(f"--platform {each}" for each in PLATFORMS)
    return f"""\
# Wheels for .ci/gpu, under {LIMIT_MIB} MiB in all (a few MiB): for Python 3.12 on x86-64 Linux, beside torch and numpy.
# This is a shell script: .ci/gpu --wheels | sh downloads them into a folder, to be carried along with the tree.
python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \\
  {platforms} \\
  --dest '{folder}' \\
  {" ".join(f"'{each}'" for each in WHEELS)}
"""


def check(folder: Path) -> str:
    """What is wrong with ``folder`` as --wheelhouse; "" where nothing is."""
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        return f"--wheelhouse must be a folder with wheels, got {folder}; .ci/gpu --wheels says how to fill it"
    size = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    if size > LIMIT_MIB:
        return f"--wheelhouse must hold at most {LIMIT_MIB} MiB, got {size:.0f} MiB in {folder}"
    return ""
