"""Makes a virtual environment that sees the packages of the Python that runs this: gpu_environment.py FOLDER.

``--system-site-packages`` alone shows those of the system. Where torch is in a virtual environment itself, a line in a .pth
file shows it. pip is seen too, so none is installed: that would need ensurepip, which Debian leaves out.
"""

from __future__ import annotations

import sys
import venv
from pathlib import Path


def main(folder: str) -> None:
    venv.EnvBuilder(system_site_packages=True, clear=True, symlinks=True).create(folder)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    seen = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    Path(folder, "lib", version, "site-packages", "of_the_machine.pth").write_text("\n".join(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
