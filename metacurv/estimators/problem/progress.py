"""Progress bars, which are shown where long work is watched by a person."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

from metacurv import _validate

_DELAY = 3.0  # seconds before a bar appears by itself


class Bar(Protocol):
    """A progress bar, of which this package uses one method."""

    def update(self, n: int = 1) -> Any:
        """Counts ``n`` steps of work."""


class _NoBar:
    def update(self, n: int = 1) -> None:
        """Does nothing."""


def check_progress(progress: bool | None) -> None:
    """Raises TypeError unless ``progress`` is True, False or None, and ImportError where it is True and there is no tqdm."""
    if progress is not None and not isinstance(progress, bool):
        raise TypeError(f"progress must be True, False or None, got {_validate.describe(progress)}")
    if progress and find_spec("tqdm") is None:
        raise ImportError(
            "progress=True needs tqdm, which is not installed; install it with `pip install tqdm`"
        )


@contextmanager
def bar(progress: bool | None, what: str, unit: str) -> Iterator[Bar]:
    """Yields a progress bar on stderr.

    Args:
        progress: True for a bar at once; None for one that appears after three seconds, where stderr is a terminal and tqdm is
            installed; False for none.
        what: the words before the bar.
        unit: the name of a step.
    """
    is_watched = progress or (progress is None and sys.stderr.isatty())
    if not is_watched or find_spec("tqdm") is None:
        yield _NoBar()
        return
    from tqdm import tqdm  # type: ignore[import-untyped]

    delay = 0.0 if progress else _DELAY
    with tqdm(desc=what, unit=f" {unit}", delay=delay, leave=False) as shown:
        yield shown
