"""Every op, and whole training steps, on one device: against torch's own operations, with results checked beside the times.

    python benchmarks/report.py --device cuda

No GPU has run this yet. A ratio is the other's median time over ours in one run; bandwidth is that of what an op has to read
and write. Results go to benchmarks/results/DEVICE.json.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.benchmark import Timer

import metacurv
from metacurv import ops

Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """Ours and the other; ``agree`` says whether they come to the same, up to the order of a sum."""

    name: str
    ours: Work
    other: Work
    agree: Callable[[], bool]
    bytes: int = 0  # that ours has to read and write


@dataclass(frozen=True)
class Outcome:
    """Medians in microseconds. ``bandwidth``: GB/s, 0 where no memory traffic is counted."""

    name: str
    ours: float
    other: float
    ratio: float
    bandwidth: float
    agree: bool


def _signs(x: Tensor) -> Tensor:
    return torch.empty_like(x).bernoulli_(0.5).mul_(2).sub_(1)


def _close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def op_cases(device: str, numel: int) -> Iterator[Case]:
    """Ops, each against what one writes in torch instead."""
    native = {"backend": "native"}
    twin = {"backend": "reference"}
    for dtype in (torch.float32, torch.bfloat16):
        x, y, z = (torch.randn(numel, device=device).to(dtype) for _ in range(3))
        size, name = x.element_size(), f"{numel:,} x {str(dtype)[6:]}"
        where = {"seed": 1, "probe": 2}

        def same_fill(x: Tensor = x, where: dict[str, int] = where) -> bool:
            a, b = torch.empty_like(x), torch.empty_like(x)
            ops.rademacher_([a], **where, **native)
            ops.rademacher_([b], **where, **twin)
            return torch.equal(a, b)

        def same_sum(x: Tensor = x, where: dict[str, int] = where) -> bool:
            exact = ops.signed_sum([x], **where, **twin)
            # Rounding errors of at most 127 additions walk at random; a lost tile is thousands of times more.
            bound = 8 * 127**0.5 * 2.0**-24 * float(x.double().norm())
            return float((ops.signed_sum([x], **where, **native) - exact).abs()) <= bound

        yield Case(
            f"rademacher_, {name}",
            lambda y=y, where=where: ops.rademacher_([y], **where, **native),
            lambda y=y: y.bernoulli_(0.5).mul_(2).sub_(1),
            same_fill,
            numel * size,
        )
        yield Case(
            f"signed_sum, {name}",
            lambda x=x, where=where: ops.signed_sum([x], **where, **native),
            lambda x=x: (x * _signs(x)).sum(dtype=torch.float64),
            same_sum,
            numel * size,
        )
        lr = torch.tensor(0.1, dtype=torch.float64, device=device)

        def same_step(x: Tensor = x, y: Tensor = y, lr: Tensor = lr) -> bool:
            a, b = torch.empty_like(x), torch.empty_like(x)
            sums = ops.step_direction_([a], [x], [y], [1.0], lr, **native)
            expected = ops.step_direction_([b], [x], [y], [1.0], lr, **twin)
            return torch.equal(a, b) and _close(sums, expected)

        def step_in_torch(x: Tensor = x, y: Tensor = y, lr: Tensor = lr) -> object:
            u = (x - y) / lr.to(x.dtype)
            wide = u.double()
            return u, wide.square().sum(), x.double().square().sum(), (~u.isfinite()).sum()

        yield Case(
            f"step_direction_, {name}",
            lambda x=x, y=y, z=z, lr=lr: ops.step_direction_([z], [x], [y], [1.0], lr, **native),
            step_in_torch,
            same_step,
            3 * numel * size,
        )

        def same_move(x: Tensor = x, y: Tensor = y, lr: Tensor = lr) -> bool:
            a, b = torch.empty_like(x), torch.empty_like(x)
            ops.move_([a], [x], [y], lr, **native)
            ops.move_([b], [x], [y], lr, **twin)
            return torch.equal(a, b)

        yield Case(
            f"move_, {name}",
            lambda x=x, y=y, z=z, lr=lr: ops.move_([z], [x], [y], lr, **native),
            lambda x=x, y=y, lr=lr: torch.addcmul(x, y, lr.to(x.dtype)),
            same_move,
            3 * numel * size,
        )
    yield from _small_cases(device)


def _small_cases(device: str) -> Iterator[Case]:
    native = {"backend": "native"}
    twin = {"backend": "reference"}
    p = torch.randn(1024, 1000, device=device).softmax(1)
    root, sqrt_p = torch.ones(1024, device=device), p.sqrt()
    where = {"seed": 1, "probe": 2, "number": 3, "n_probes": 4}

    def factor_in_torch() -> Tensor:
        t = sqrt_p * _signs(torch.empty(4, *sqrt_p.shape, device=device))
        return t - t * t * t.sum(2, keepdim=True)

    yield Case(
        "softmax_factor, 4 draws of 1024 x 1000",
        lambda: ops.softmax_factor(sqrt_p, root, **where, **native),
        factor_in_torch,
        lambda: _close(
            ops.softmax_factor(sqrt_p, root, **where, **native),
            ops.softmax_factor(sqrt_p, root, **where, **twin),
        ),
        4 * 6 * sqrt_p.numel(),
    )
    a, u = torch.randn(1024, 512, device=device), torch.randn(8, 1024, 512, device=device)
    yield Case(
        "row_products, 8 draws of 1024 x 512",
        lambda: ops.row_products(a, u, u, **native),
        lambda: (a.double().square().sum(1) @ u.double().square().sum(2).t(), u.double().square()),
        lambda: _close(ops.row_products(a, u, u, **native), ops.row_products(a, u, u, **twin)),
        4 * u.numel() + 4 * a.numel(),
    )
    scale = torch.ones((), device=device)
    trace = torch.tensor(5.0, device=device)
    yield Case(
        "reciprocal_lr_",
        lambda: ops.reciprocal_lr_(scale, trace, alpha=0.0, **native),
        lambda: scale / (1 + 0.0 * trace.clamp(min=0)),
        lambda: float(scale) == 1.0,
    )


def step_cases(device: str, width: int, steps: int) -> Iterator[Case]:
    """Whole training steps: the bare base's time over ours, so at most 1 and the nearer the better."""
    x = torch.randn(width, width, device=device)
    y = torch.randint(0, 10, (width,), device=device)
    capturable = {"capturable": True} if device == "cuda" else {}

    def training(rule: str | None) -> tuple[Work, nn.Module]:
        torch.manual_seed(0)
        layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(width, 10)).to(device)
        opt: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), **capturable)
        if rule == "reciprocal":
            opt = metacurv.MetaCurvatureLR(opt)
        elif rule == "directional":
            opt = metacurv.MetaCurvatureLR(
                opt,
                rule=rule,
                model=model,
                loss_fn=functional.cross_entropy,
                probe=[(x, y)],
                average=True,
            )

        def many() -> None:
            for _ in range(steps):
                opt.zero_grad()
                loss = functional.cross_entropy(model(x), y)
                if isinstance(opt, metacurv.MetaCurvatureLR):
                    opt.update_curvature(loss)
                loss.backward()
                opt.step()

        return many, model

    for rule in ("reciprocal", "directional"):
        (ours, model), (other, _) = training(rule), training(None)

        def is_finite(model: nn.Module = model) -> bool:
            return all(bool(p.isfinite().all()) for p in model.parameters())

        yield Case(f"{steps} steps of Adam, {rule} rule", ours, other, is_finite)


def measure(case: Case, seconds: float) -> Outcome:
    """Medians of runs that take turns."""
    timers = [Timer("work()", globals={"work": work}) for work in (case.ours, case.other)]
    times: list[list[float]] = [[], []]
    for _ in range(5):
        for timer, taken in zip(timers, times, strict=True):
            taken.append(timer.blocked_autorange(min_run_time=seconds / 10).median * 1e6)
    ours, other = map(statistics.median, times)
    bandwidth = case.bytes / ours / 1e3
    return Outcome(case.name, ours, other, other / ours, bandwidth, case.agree())


def run(
    device: str,
    out: Path,
    *,
    numel: int = 1 << 26,
    width: int = 1024,
    steps: int = 100,
    seconds: float = 2.0,
) -> int:
    """Measures all, prints a table, writes ``out``. Returns: 1 where a result is wrong, else 0."""
    cases = [*op_cases(device, numel), *step_cases(device, width, steps)]
    outcomes = []
    print(f"{'':44} {'ours, us':>12} {'torch, us':>12} {'ratio':>7} {'GB/s':>7}")
    for case in cases:
        found = measure(case, seconds)
        outcomes.append(found)
        print(
            f"{found.name:44} {found.ours:12.1f} {found.other:12.1f} {found.ratio:7.2f} {found.bandwidth:7.0f}"
            + ("" if found.agree else "  WRONG"),
            flush=True,
        )
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    content = {
        "command": f"python benchmarks/report.py --device {device}",
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": name,
        "cuda": torch.version.cuda,
        "metacurv": metacurv.build_info(),
        "outcomes": [asdict(found) for found in outcomes],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {out}")
    return 0 if all(found.agree for found in outcomes) else 1


def why_not(device: str) -> str:
    """Why nothing can be measured there; "" where it can."""
    if device == "cuda" and not torch.cuda.is_available():
        return "torch.cuda.is_available() is False"
    if device == "cuda" and not metacurv.cuda_compiled():
        return (
            "metacurv was built without CUDA kernels: pip install . with METACURV_CUDA=1 says why"
        )
    if not metacurv.native_available():
        return f"there are no compiled kernels: {metacurv.build_info()}"
    return ""
