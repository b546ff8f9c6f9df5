"""How many files one estimate goes through: whoever follows it in a debugger has to know all of them."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path
from types import FrameType

import torch
from torch import nn

import metacurv

PACKAGE = Path(metacurv.__file__).parent
# Checks of single arguments and the ops are the ends of the way, and have pages of their own.
NOT_COUNTED = ("_validate.py", "ops")
MOST = 12
PAGE = Path(__file__).resolve().parents[2] / "docs" / "develop" / "architecture.md"


def files_on_the_way(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> set[str]:
    """Those of the package whose functions run, generated ones aside, relative to it."""
    seen: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)  # "<string>" for the methods of a dataclass
        if event == "call" and path.is_relative_to(PACKAGE):
            seen.add(path.relative_to(PACKAGE).as_posix())

    before = sys.getprofile()
    gc.disable()  # it would end generators that other tests left
    sys.setprofile(note)
    try:
        metacurv.estimate_trace(model, nn.CrossEntropyLoss(), x, y)
    finally:
        sys.setprofile(before)
        gc.enable()
    return {name for name in seen if name.split("/")[0] not in NOT_COUNTED}


def test_a_plain_network_goes_through_few_files() -> None:
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 4))
    x, y = torch.ones(8, 10), torch.arange(8) % 4
    files = files_on_the_way(model, x, y)
    assert "estimators/estimate_trace.py" in files
    assert len(files) <= MOST, sorted(files)
    paragraphs = PAGE.read_text().split("\n\n")
    (listed,) = [text for text in paragraphs if text.startswith("A plain ReLU network")]
    named = {f"estimators/{name}" for name in re.findall(r"`([\w/]+\.py)`", listed)}
    assert named - {"estimators/tests/estimators/test_files_on_the_way.py"} == files
