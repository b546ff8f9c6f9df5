"""The device, and the mark of tests that need it."""

from __future__ import annotations

import pytest
import torch

import metacurv

if not torch.cuda.is_available():
    WHY_SKIPPED = "needs a GPU: torch.cuda.is_available() is False"
elif not metacurv.cuda_compiled():
    WHY_SKIPPED = "metacurv was built without CUDA kernels (metacurv.build_info() says how)"
else:
    WHY_SKIPPED = ""

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY_SKIPPED), reason=WHY_SKIPPED)]

DEVICE = "cuda"
