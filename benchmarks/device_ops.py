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
        yield from _step_cases(device, numel, dtype)
    yield from _factor_cases(device)
    yield from _rule_cases(device)


def _signs(x: Tensor) -> Tensor:
    return torch.empty_like(x).bernoulli_(0.5).mul_(2).sub_(1)


def _agree(
    run: Callable[[str], Sequence[Tensor]], *, relative: float = 0.0, absolute: float = 0.0
) -> Callable[[], bool]:
    """Whether ``run`` gives the same by the kernel and by the twin."""

    def agree() -> bool:
        pairs = zip(run("native"), run("reference"), strict=True)
        return all(
            torch.allclose(a.double(), b.double(), rtol=relative, atol=absolute) for a, b in pairs
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


def _step_cases(device: str, numel: int, dtype: torch.dtype) -> Iterator[Case]:
    x, y, z = (torch.randn(numel, device=device).to(dtype) for _ in range(3))
    name, traffic = f"{numel:,} x {str(dtype)[6:]}", 3 * numel * x.element_size()
    lr = torch.tensor(0.1, dtype=torch.float64, device=device)

    def direction(backend: str) -> list[Tensor]:
        u = torch.empty_like(x)
        return [ops.step_direction_([u], [x], [y], [1.0], lr, backend=backend), u]

    def direction_in_torch() -> object:
        u = (x - y) / lr.to(dtype)
        return u, u.double().square().sum(), x.double().square().sum(), (~u.isfinite()).sum()

    yield Case(
        f"step_direction_, {name}",
        lambda: ops.step_direction_([z], [x], [y], [1.0], lr, backend="native"),
        direction_in_torch,
        _agree(direction, relative=1e-5),
        traffic,
    )

    def moved(backend: str) -> list[Tensor]:
        out = torch.empty_like(x)
        ops.move_([out], [x], [y], lr, backend=backend)
        return [out]

    yield Case(
        f"move_, {name}",
        lambda: ops.move_([z], [x], [y], lr, backend="native"),
        lambda: torch.addcmul(x, y, lr.to(dtype)),
        _agree(moved),
        traffic,
    )


def _factor_cases(device: str) -> Iterator[Case]:
    p = torch.randn(1024, 1000, device=device).softmax(1)
    root, sqrt_p = torch.ones(1024, device=device), p.sqrt()

    def factor(backend: str) -> list[Tensor]:
        return [ops.softmax_factor(sqrt_p, root, **WHERE, number=3, n_probes=4, backend=backend)]

    def factor_in_torch() -> Tensor:
        t = sqrt_p * _signs(torch.empty(4, *sqrt_p.shape, device=device))
        return t - t * t * t.sum(2, keepdim=True)

    yield Case(
        "softmax_factor, 4 draws of 1024 x 1000",
        lambda: factor("native"),
        factor_in_torch,
        _agree(factor, relative=1e-5, absolute=1e-5),
        4 * 5 * sqrt_p.numel(),  # read once, four draws written
    )
    a, u = torch.randn(1024, 512, device=device), torch.randn(8, 1024, 512, device=device)

    def products(backend: str) -> list[Tensor]:
        return [ops.row_products(a, u, u, backend=backend)]

    def products_in_torch() -> object:
        norms = u.double().square().sum(2)
        return norms @ a.double().square().sum(1), norms.sum(1)

    yield Case(
        "row_products, 8 draws of 1024 x 512",
        lambda: products("native"),
        products_in_torch,
        _agree(products, relative=1e-5),
        4 * u.numel() + 4 * a.numel(),
    )


def _rule_cases(device: str) -> Iterator[Case]:
    """Kernels of one thread: what counts is the launch."""
    trace, scale = torch.tensor(5.0, device=device), torch.ones((), device=device)

    def shrunk(backend: str) -> list[Tensor]:
        made = torch.ones((), device=device)
        ops.reciprocal_lr_(made, trace, alpha=0.1, backend=backend)
        return [made]

    yield Case(
        "reciprocal_lr_",
        lambda: ops.reciprocal_lr_(scale, trace, alpha=0.1, backend="native"),
        lambda: 1 / (1 + 0.1 * trace.clamp(min=0)),
        _agree(shrunk),
    )

    def state() -> list[Tensor]:
        scales = torch.tensor([[0.5], [0.0], [0.0], [0.0]], dtype=torch.float64, device=device)
        shared = torch.tensor([1.0, 1.0, 1.0, 0, 1, 1], dtype=torch.float64, device=device)
        return [scales, shared]

    reading = torch.tensor([1.0, 8.0, 8.0], dtype=torch.float64, device=device)
    rule = {"sigma": 2.0, "kappa": 0.1, "beta": 0.9, "searching": True}

    def followed(backend: str) -> list[Tensor]:
        made = state()
        ops.directional_lr_(*made, reading, **rule, backend=backend)
        return made

    ours, (scales, _) = state(), state()

    def in_torch() -> None:
        """Without its guards and its memory of losses."""
        rate, slope, curvature = scales[0], scales[1], scales[2]
        slope.lerp_(reading[1], 0.1)
        curvature.lerp_(reading[2], 0.1)
        rate.mul_(torch.exp(0.1 * torch.log(2.0 * slope / (rate * curvature)).clamp(-1, 3)))

    yield Case(
        "directional_lr_",
        lambda: ops.directional_lr_(*ours, reading, **rule, backend="native"),
        in_torch,
        _agree(followed, relative=1e-12),
    )
