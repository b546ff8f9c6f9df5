"""Prints a shell block of README.md, so that CI runs the very commands that readers are told to.

Usage: readme_command.py NAME, for the ```sh block that follows the line <!-- ci:NAME -->.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def main(name: str) -> int:
    text = README.read_text()
    blocks = re.findall(rf"^<!-- ci:{re.escape(name)} -->\s*```sh\n(.*?)^```$", text, re.M | re.S)
    if len(blocks) != 1:
        found = len(blocks)
        print(f"README.md has {found} sh blocks marked <!-- ci:{name} -->, not 1", file=sys.stderr)
        return 1
    print(blocks[0], end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
