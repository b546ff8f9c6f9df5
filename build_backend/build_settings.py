"""The METACURV_* environment variables that steer a build, read and checked in one place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

ARCH = re.compile(r"(\d+)\.?(\d)([af]?)(\+PTX)?", re.IGNORECASE)


class SettingError(ValueError):
    """A METACURV_* variable has a value that it cannot have: the build stops, with no fallback."""


@dataclass(frozen=True)
class BuildSettings:
    """What the person who builds asked for.

    Attributes:
        cuda: "0" builds no CUDA kernels, "1" fails without them, "auto" builds them where it can.
        cuda_archs: architectures such as ("80", "90a", "90+PTX"), or None: those of this machine's GPUs, else 8.0 and 9.0.
        require_native: fail instead of installing the pure-Python fallback.
        werror: warnings of the C++ and CUDA compilers are errors.
        debug: assertions and debug information, little optimisation.
        ptxas_verbose: print registers and spills of each CUDA kernel.
    """

    cuda: str = "auto"
    cuda_archs: tuple[str, ...] | None = None
    require_native: bool = False
    werror: bool = False
    debug: bool = False
    ptxas_verbose: bool = False

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> BuildSettings:
        """Reads the settings from ``environ``; an empty value counts as unset.

        Raises:
            SettingError: a variable has a value that it does not take; the message names both.
        """
        cuda = environ.get("METACURV_CUDA", "").strip().lower() or "auto"
        if cuda not in ("0", "1", "auto"):
            raise SettingError(f"METACURV_CUDA must be 0, 1 or auto, got {cuda!r}")
        archs = environ.get("METACURV_CUDA_ARCHS", "").strip()
        return cls(
            cuda=cuda,
            cuda_archs=parse_archs(archs) if archs else None,
            require_native=_flag(environ, "METACURV_REQUIRE_NATIVE"),
            werror=_flag(environ, "METACURV_WERROR"),
            debug=_flag(environ, "METACURV_DEBUG"),
            ptxas_verbose=_flag(environ, "METACURV_PTXAS_VERBOSE"),
        )

    def required_by(self) -> str | None:
        """The setting that forbids the pure-Python fallback; None where it is allowed."""
        if self.cuda == "1":
            return "METACURV_CUDA=1"
        return "METACURV_REQUIRE_NATIVE=1" if self.require_native else None


def _flag(environ: Mapping[str, str], name: str) -> bool:
    value = environ.get(name, "").strip() or "0"
    if value not in ("0", "1"):
        raise SettingError(f"{name} must be 0 or 1, got {value!r}")
    return value == "1"


def parse_archs(text: str) -> tuple[str, ...]:
    """Parses "8.0;9.0+PTX", "80 90a" or "80,90" into names such as "80", "90a", "90+PTX".

    The order is kept and repetitions are dropped.

    Raises:
        SettingError: an entry is no compute capability, or there is none.
    """
    names: list[str] = []
    for entry in re.split(r"[;,\s]+", text.strip(" \t\n;,")):
        match = ARCH.fullmatch(entry)
        if match is None:
            raise SettingError(
                "METACURV_CUDA_ARCHS must list compute capabilities such as '8.0;9.0' or "
                f"'80;90+PTX', got {entry!r} in {text!r}"
            )
        major, minor, suffix, ptx = match.groups()
        names.append(f"{major}{minor}{suffix.lower()}{'+PTX' if ptx else ''}")
    return tuple(dict.fromkeys(names))
