"""Finds nvcc and the toolkit that belongs to it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class CudaUnavailableError(RuntimeError):
    """There is no CUDA toolkit here that can compile the kernels; the message says why."""


@dataclass(frozen=True)
class CudaToolkit:
    """A CUDA toolkit that was found and looked at.

    Attributes:
        nvcc: the compiler, or a script that runs it.
        version: such as "13.0".
        release: the version to its last digit, such as "13.0.88".
        include: folder of cuda_runtime.h.
        cudart: the static runtime library.
        archs: architectures that this nvcc compiles for, such as "80".
    """

    nvcc: str
    version: str
    release: str
    include: Path
    cudart: Path
    archs: tuple[str, ...]


def _run(command: Sequence[str]) -> str:
    """Output of ``command``, stdout and stderr together; nvcc prints its dry run to stderr."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except OSError as error:
        raise CudaUnavailableError(f"{command[0]} does not run: {error}") from error
    return done.stdout


def find_nvcc(environ: Mapping[str, str]) -> str | None:
    """nvcc of $CUDA_HOME, else on $PATH, else in the usual folder; None where there is none."""
    home = environ.get("CUDA_HOME") or environ.get("CUDA_PATH")
    if home:
        return shutil.which("nvcc", path=str(Path(home, "bin")))
    path = environ.get("PATH", os.defpath)
    return shutil.which("nvcc", path=f"{path}{os.pathsep}/usr/local/cuda/bin")


def toolkit_root(dryrun: str) -> Path:
    """The toolkit's folder out of what ``nvcc --dryrun`` printed.

    nvcc's own path does not tell: it may be a wrapper script in /usr/local/bin.
    """
    match = re.search(r"^#\$ TOP=(.+)$", dryrun, re.MULTILINE)
    if match is None:
        raise CudaUnavailableError(f"nvcc --dryrun printed no TOP= line but {dryrun[:200]!r}")
    return Path(match[1].strip()).resolve()


def _first_with(name: str, folders: Sequence[Path]) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return folder
    searched = ", ".join(map(str, folders))
    raise CudaUnavailableError(f"{name} is in none of {searched}")


def inspect_toolkit(nvcc: str) -> CudaToolkit:
    """Asks ``nvcc`` for its version, folders and architectures.

    Raises:
        CudaUnavailableError: it does not run, or its headers or static runtime are missing.
    """
    version = re.search(r"release (\d+\.\d+), V([\d.]+)", _run([nvcc, "--version"]))
    if version is None:
        raise CudaUnavailableError(f"{nvcc} --version names no release")
    root = toolkit_root(_run([nvcc, "--dryrun", "-c", "x.cu"]))
    targets = sorted(root.glob("targets/*-linux"))
    include = _first_with(
        "cuda_runtime.h",
        [root / "include", *(t / "include" for t in targets), Path("/usr/include")],
    )
    lib = _first_with(
        "libcudart_static.a",
        [
            root / "lib64",
            root / "lib",
            *(t / "lib" for t in targets),
            *sorted(Path("/usr/lib").glob("*-linux-gnu")),
        ],
    )
    archs = re.findall(r"^sm_(\d+)$", _run([nvcc, "--list-gpu-code"]), re.MULTILINE)
    return CudaToolkit(
        nvcc, version[1], version[2], include, lib / "libcudart_static.a", tuple(archs)
    )


def find_toolkit(environ: Mapping[str, str]) -> CudaToolkit:
    """The toolkit to build with.

    Raises:
        CudaUnavailableError: there is none, or it is incomplete.
    """
    nvcc = find_nvcc(environ)
    if nvcc is None:
        raise CudaUnavailableError("no nvcc in $CUDA_HOME/bin, on $PATH or in /usr/local/cuda")
    return inspect_toolkit(nvcc)
