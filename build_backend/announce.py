"""Says in one line what was built, where the person who installs can read it."""

from __future__ import annotations

import contextlib
import os
import re
import textwrap
from pathlib import Path


def announce(line: str) -> None:
    """Prints ``line``, the last of the build's log; where pip hides that log, puts it above pip's own line."""
    print(line, flush=True)
    if os.environ.get("TERM", "dumb") == "dumb" or "JPY_PARENT_PID" in os.environ:
        return  # no terminal, or a notebook's, which need not know the sequences below
    with contextlib.suppress(OSError):  # no /proc, no terminal, or one that takes nothing now
        pip = Path("/proc", str(os.getppid()))
        if hides_the_log((pip / "cmdline").read_text(errors="replace").split("\0")):
            # A new way to the terminal, not a copy of pip's: only this one must never wait.
            terminal = os.open(pip / "fd" / "1", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            try:
                width = os.get_terminal_size(terminal).columns  # OSError where it is none
                os.write(terminal, insertion(line, width).encode())
            finally:
                os.close(terminal)


def hides_the_log(command: list[str]) -> bool:
    """Whether ``command`` is pip, neither with -v, which shows the log, nor with -q."""
    python, *arguments = command
    is_pip = "python" in Path(python).name and any(Path(word).name == "pip" for word in arguments)
    louder = re.compile(r"-[a-z]*[vq][a-z]*|--verbose|--quiet")
    return is_pip and not any(louder.fullmatch(word) for word in arguments)


def insertion(line: str, width: int) -> str:
    """What makes a terminal show ``line`` above the line that the cursor is in.

    pip turns a wheel there (``Building wheel for metacurv ... |``) and goes on with it afterwards.
    """
    rows = textwrap.wrap(line, max(width - 1, 20))
    count = len(rows)
    make_room = "\033D" * count + f"\033[{count}A"  # scrolls where the cursor is at the bottom
    insert = f"\0337\r\033[{count}L" + "\r\n".join(rows) + f"\0338\033[{count}B"
    return make_room + insert
