"""The compiler and the libraries that a build uses: their versions, and lasting paths to them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class BuildTools:
    """What the kernels are compiled with and against.

    Attributes:
        compiler: name and version, such as "g++ 12.2.0".
        torch: version of torch.
        include_dirs: folders of the headers of pybind11 and torch.
        torch_lib: folder of torch's shared libraries.
        fingerprint: a word that differs where any of these tools has another version.
    """

    compiler: str
    torch: str
    include_dirs: tuple[str, ...]
    torch_lib: str
    fingerprint: str


def find_tools(compiler: Sequence[str], folder: Path) -> BuildTools:
    """Looks at ``compiler``, pybind11 and torch, and puts links to the libraries into ``folder``.

    An isolated build finds them in a temporary folder with a name of its own. Through the links
    command lines stay the same from build to build, so ninja sees what has changed and what has not.

    Raises:
        RuntimeError: there is no torch.
    """
    import pybind11

    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        raise RuntimeError("there is no torch to compile against")
    torch_root = Path(torch.origin).parent
    said = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True)
    first_line = said.stdout.partition("\n")[0]
    versions = (first_line, f"torch {version('torch')}", f"pybind11 {pybind11.__version__}")
    return BuildTools(
        compiler=short_name(compiler, first_line),
        torch=version("torch"),
        # pybind11 stands first: torch ships one of its own that refuses to be included beside the
        # stable ABI.
        include_dirs=(
            _link(folder / "pybind11", Path(pybind11.get_include())),
            _link(folder / "torch", torch_root / "include"),
        ),
        torch_lib=_link(folder / "torch_lib", torch_root / "lib"),
        fingerprint=re.sub(r"[^\w.+]+", "-", " ".join(versions)),
    )


def short_name(compiler: Sequence[str], first_line: str) -> str:
    """Name and version of ``compiler``, out of the ``first_line`` that it prints with --version.

    "g++ (Debian 12.2.0-14) 12.2.0" gives "g++ 12.2.0".
    """
    number = re.search(r"\d+(\.\d+)+", first_line)
    name = Path(next(word for word in compiler if "ccache" not in word)).name
    return f"{name} {number[0]}" if number else name


def _link(link: Path, target: Path) -> str:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    return str(link)
