"""The ops for on_device.py, each beside what one writes in torch instead; the PyTorch twin judges the results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.device_case import Case
from metacurv import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WHERE = {"seed": 1, "probe": 2}


def op_cases(device: str, numel: int) -> Iterator[Case]:
    """All ops that have a CUDA kernel."""
    for dtype in DTYPES:
        yield from _probe_cases(device, numel, dtype)
    yield _rule_case(device)


def _signs(x: Tensor) -> Tensor:
    return torch.empty_like(x).bernoulli_(0.5).mul_(2).sub_(1)


def _agree(run: Callable[[str], Sequence[Tensor]], *, absolute: float = 0.0) -> Callable[[], bool]:
    """Whether ``run`` gives the same by the kernel and by the twin."""

    def agree() -> bool:
        pairs = zip(run("native"), run("reference"), strict=True)
        return all(
            torch.allclose(a.double(), b.double(), rtol=0.0, atol=absolute) for a, b in pairs
        )

    return agree


def _probe_cases(device: str, numel: int, dtype: torch.dtype) -> Iterator[Case]:
    x, y = (torch.randn(numel, device=device).to(dtype) for _ in range(2))
    name, traffic = f"{numel:,} x {str(dtype)[6:]}", numel * x.element_size()
    # Rounding errors of at most 127 additions walk at random; a lost tile is thousands of times more.
    rounding = 8 * 127**0.5 * 2.0**-24 * float(x.double().norm())

    def fill(backend: str) -> list[Tensor]:
        signs = torch.empty_like(x)
        ops.rademacher_([signs], **WHERE, backend=backend)
        return [signs]

    yield Case(
        f"rademacher_, {name}",
        lambda: ops.rademacher_([y], **WHERE, backend="native"),
        lambda: y.bernoulli_(0.5).mul_(2).sub_(1),
        _agree(fill),
        traffic,
    )
    yield Case(
        f"signed_sum, {name}",
        lambda: ops.signed_sum([x], **WHERE, backend="native"),
        lambda: (x * _signs(x)).sum(dtype=torch.float64),
        _agree(lambda backend: [ops.signed_sum([x], **WHERE, backend=backend)], absolute=rounding),
        traffic,
    )

    def statistics() -> tuple[Tensor, Tensor, Tensor]:
        mean, m2 = torch.zeros(2, 2, dtype=torch.float64, device=device)
        return mean, m2, torch.zeros((), dtype=torch.int64, device=device)

    def accumulated(backend: str) -> tuple[Tensor, ...]:
        made = statistics()
        ops.hutchinson_accumulate_(*made, [x], **WHERE, backend=backend)
        return made

    ours, (mean, m2, count) = statistics(), statistics()

    def in_torch() -> None:
        sample = (x * _signs(x)).sum(dtype=torch.float64)
        count.add_(1)
        change = sample - mean
        mean.add_(change / count)
        m2.add_(change * (sample - mean))

    yield Case(
        f"hutchinson_accumulate_, {name}",
        lambda: ops.hutchinson_accumulate_(*ours, [x], **WHERE, backend="native"),
        in_torch,
        _agree(accumulated, absolute=rounding),
        traffic,
    )


def _rule_case(device: str) -> Case:
    """A kernel of one thread: what counts is the launch."""
    trace, scale = torch.tensor(5.0, device=device), torch.ones((), device=device)

    def shrunk(backend: str) -> list[Tensor]:
        made = torch.ones((), device=device)
        ops.reciprocal_lr_(made, trace, alpha=0.1, backend=backend)
        return [made]

    return Case(
        "reciprocal_lr_",
        lambda: ops.reciprocal_lr_(scale, trace, alpha=0.1, backend="native"),
        lambda: 1 / (1 + 0.1 * trace.clamp(min=0)),
        _agree(shrunk),
    )
