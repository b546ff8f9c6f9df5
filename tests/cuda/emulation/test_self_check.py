"""The self-check of ``python -m metacurv`` for a GPU: self_check.py, in a process that believes in one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metacurv.__main__ import checks
from tests.cuda.emulation.build import run_on_stand_in


@pytest.mark.slow
@pytest.mark.skipif(
    torch.cuda.is_available(),
    reason="there is a GPU, which tests/self_check/test_self_check.py uses",
)
def test_all_is_on_the_device(tmp_path: Path) -> None:
    done = run_on_stand_in("self_check.py", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = [f"{check.name}: ok" for check in checks(torch.device("cuda", 0))]
    assert done.stdout.splitlines() == expected
