"""The one line at the end of a build: in its log, and in the terminal where pip hides that log."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from announce import hides_the_log, insertion

ROOT = Path(__file__).resolve().parents[2]

# What pip does: the start of a line, the build with its output caught, the end of the line.
PIP = """
import subprocess, sys
print("before\\n  Building ... |", end="", flush=True)
code = "import sys; sys.path.insert(0, sys.argv[1]); from announce import announce; announce('It is built.')"
done = subprocess.run([sys.executable, "-c", code, {backend!r}], stdout=subprocess.PIPE, text=True)
print("\\b \\bdone " + repr(done.stdout), flush=True)
"""

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="finds pip's terminal through /proc")


def output_of_pip(
    folder: Path, *arguments: str, redirect: bool = False, term: str = "xterm"
) -> str:
    """What a terminal gets while a stand-in for ``pip install`` runs in it."""
    pip = folder / "pip"
    pip.write_text(PIP.format(backend=str(ROOT / "build_backend")))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    log = folder / "log"
    with log.open("w") as file:
        subprocess.run(
            [sys.executable, str(pip), "install", *arguments, "."],
            stdin=theirs,
            stdout=file if redirect else theirs,
            stderr=theirs,
            env={**os.environ, "TERM": term},
            check=True,
        )
    os.write(theirs, b"END")  # so that there is something to read
    os.close(theirs)
    seen = b""
    while not seen.endswith(b"END"):
        seen += os.read(ours, 4096)
    os.close(ours)
    return seen.decode().removesuffix("END")


@on_linux
def test_terminal_shows_the_line_above_pips_own(tmp_path: Path) -> None:
    expected = f"  Building ... |{insertion('It is built.', 80)}\b \bdone 'It is built.\\n'\r\n"
    assert output_of_pip(tmp_path) == f"before\r\n{expected}"


@on_linux
@pytest.mark.parametrize(("arguments", "redirect"), [(["-v"], False), (["-q"], False), ([], True)])
def test_terminal_is_left_alone(arguments: list[str], redirect: bool, tmp_path: Path) -> None:
    """Where pip shows the log itself, shall be quiet, or writes elsewhere."""
    assert "\033" not in output_of_pip(tmp_path, *arguments, redirect=redirect)


@on_linux
def test_a_terminal_without_sequences_is_left_alone(tmp_path: Path) -> None:
    assert "\033" not in output_of_pip(tmp_path, term="dumb")


def test_insertion_makes_room_and_comes_back() -> None:
    assert insertion("one two", 80) == "\033D\033[1A\0337\r\033[1Lone two\0338\033[1B"
    wide = insertion("a" * 15 + " " + "b" * 15, 21)
    assert wide.startswith("\033D\033D\033[2A")
    assert wide.endswith("\0338\033[2B")
    assert "a\r\nb" in wide


@pytest.mark.parametrize(
    ("command", "hides"),
    [
        ("/venv/bin/python3.11 /venv/bin/pip install .", True),
        ("python -m pip install --no-deps -e .", True),
        ("/venv/bin/python3.11 /venv/bin/pip install -v .", False),
        ("python -m pip -vv install .", False),
        ("python -m pip install --quiet .", False),
        ("/usr/bin/uv pip install .", False),
        ("python -m build", False),
    ],
)
def test_what_hides_the_log(command: str, hides: bool) -> None:
    assert hides_the_log(command.split()) is hides
