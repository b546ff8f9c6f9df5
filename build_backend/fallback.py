"""What a build does where no compiler works: it says so, and leaves no stale binary behind."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from ninja_build import ROOT


def check_compiler(compiler: Sequence[str]) -> None:
    """Raises RuntimeError where no C++ can be compiled at all, before anything is tried with it."""
    if os.name != "posix":
        raise RuntimeError("the kernels are built on Linux and macOS only")
    command = [*compiler, "-x", "c++", "-fsyntax-only", "-"]
    program = "#include <string>"
    try:
        done = subprocess.run(command, input=f"{program}\n", text=True, check=False)
    except OSError as error:
        raise RuntimeError(f"the C++ compiler {compiler[0]!r} does not run: {error}") from error
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)!r} does not compile {program!r}")


def remove_stale(build_lib: str, into_source_tree: bool) -> None:
    """Deletes what an earlier build left: beside a fallback it would be imported, or packed.

    The source tree is touched by editable builds only: it may serve another environment.
    """
    folders = [Path(build_lib, "metacurv"), *([ROOT / "metacurv"] if into_source_tree else [])]
    for folder in folders:
        for suffix in EXTENSION_SUFFIXES:
            (folder / f"_C{suffix}").unlink(missing_ok=True)


def warn_fallback(error: Exception) -> None:
    """The one warning of a build that ends as pure Python."""
    banner(
        "WARNING: metacurv is installed WITHOUT its compiled kernels (pure-Python fallback).",
        f"Reason: {type(error).__name__}: {error}",
        "Results are the same, but slower; metacurv.native_available() returns False.",
        "For the kernels, install a C++17 compiler (g++ or clang++) and reinstall;",
        "METACURV_REQUIRE_NATIVE=1 turns this warning into an error.",
    )


def banner(*lines: str) -> None:
    """Prints ``lines`` so that they stand out in a build log."""
    rule = "*" * 88
    sys.stdout.flush()
    print(rule, *(f"* {line}" for line in lines), rule, sep="\n", file=sys.stderr, flush=True)
