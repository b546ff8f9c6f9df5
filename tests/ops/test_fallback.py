"""Without the compiled module: one warning, the same results, and a clear error where native is demanded."""

from __future__ import annotations

import json

import pytest
import torch

import metacurv
from tests.helpers import TOLERANCE, needs_native, run_without_native

# What both processes compute; hex() keeps every bit.
COMPUTE = """
import json, warnings
import torch
import torch.nn.functional as F
import metacurv

def compute(backend):
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, generator=generator) for n in (0, 5, 40000)]
    filled = [torch.empty(300), torch.empty(7, 9, dtype=torch.bfloat16)]
    metacurv.ops.rademacher_(filled, seed=3, probe=1, backend=backend)
    sums = metacurv.ops.signed_sum(tensors, seed=3, probe=1, offsets=[1, 2, 3], backend=backend)
    scale = torch.tensor(1.0)
    metacurv.ops.reciprocal_lr_(scale, torch.tensor(3.7), alpha=0.3, backend=backend)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
    loss = F.cross_entropy(model(x), y)
    estimate = metacurv.hessian_trace(loss, model.parameters(), n_samples=5, backend=backend)
    opt = metacurv.MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), update_freq=2, backend=backend)
    for _ in range(5):
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        opt.update_curvature(loss)
        loss.backward()
        opt.step()
    return {
        "exact": [
            [value.hex() for value in sums.tolist()],
            [tensor.flatten().tolist() for tensor in filled],
            scale.item().hex(),
        ],
        "close": [estimate.value, estimate.stderr, opt.effective_lrs[0], model[0].weight.detach().sum().item()],
    }
"""


@pytest.fixture(scope="module")
def fallback() -> dict:
    """What a process says that cannot load the compiled module."""
    report = run_without_native(
        COMPUTE
        + """
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    result = compute("auto")
    compute("auto")
    compute("reference")
print(json.dumps({
    "result": result,
    "warnings": [[w.category.__name__, str(w.message), w.filename] for w in heard],
    "native": metacurv.native_available(),
    "cuda": metacurv.cuda_compiled(),
    "info": metacurv.build_info(),
}))
"""
    )
    return json.loads(report)


def test_it_says_so(fallback):
    assert fallback["native"] is False
    assert fallback["cuda"] is False
    info = fallback["info"]
    assert info["native"] is False
    assert info["version"] == metacurv.__version__
    assert info["torch"] == torch.__version__
    assert info["native_error"]


def test_it_warns_once(fallback):
    assert [category for category, _, _ in fallback["warnings"]] == ["RuntimeWarning"]
    _, message, filename = fallback["warnings"][0]
    assert "without its compiled kernels" in message
    assert "results are the same, slower" in message
    assert "install" in message
    assert filename == "<string>"  # the caller's line, not one of ours


def test_importing_it_warns_of_nothing():
    run_without_native("import warnings; warnings.simplefilter('error')\nimport metacurv")


def test_the_reference_backend_warns_of_nothing():
    run_without_native(
        "import warnings; warnings.simplefilter('error')\n"
        "import torch, metacurv\n"
        "metacurv.ops.rademacher_([torch.empty(3)], seed=0, probe=0, backend='reference')\n"
    )


@needs_native
def test_results_are_those_of_the_compiled_kernels(fallback):
    scope: dict = {}
    exec(COMPUTE, scope)
    native = scope["compute"]("native")
    assert fallback["result"]["exact"] == native["exact"]
    assert fallback["result"]["close"] == pytest.approx(
        native["close"], rel=TOLERANCE[torch.float64]
    )


def test_demanding_native_is_a_clear_error():
    report = run_without_native(
        """
import torch, metacurv
w = torch.ones(3, requires_grad=True)
opt = metacurv.MetaCurvatureLR(torch.optim.SGD([w], lr=0.1), backend="native")
calls = [
    lambda: metacurv.ops.rademacher_([w], seed=0, probe=0, backend="native"),
    lambda: metacurv.ops.signed_sum([w], seed=0, probe=0, backend="native"),
    lambda: metacurv.hessian_trace((w ** 2).sum(), [w], backend="native"),
    lambda: opt.update_curvature((w ** 2).sum()),
]
for call in calls:
    try:
        call()
    except RuntimeError as error:
        print(str(error).splitlines()[0])
assert w.tolist() == [1.0] * 3 and w.grad is None and opt.effective_lrs == [0.1]
"""
    )
    lines = report.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert "backend='native' needs kernels compiled for device cpu" in line
