"""Whole training steps for on_device.py: the bare base's time over ours, so at most 1 and the nearer the better."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

import metacurv
from benchmarks.device_case import Case, Work

RULES = ("reciprocal", "directional")


class Training:
    """A perceptron under Adam, bare or under a rule.

    Args:
        parallel: makes of the model what is trained, such as ``DistributedDataParallel``.
        autocast: dtype of the forward pass; None: float32. With float16 the loss is scaled.
    """

    def __init__(
        self,
        device: str,
        width: int,
        rule: str | None,
        *,
        autocast: torch.dtype | None = None,
        parallel: Callable[[nn.Module], nn.Module] = lambda model: model,
        seed: int = 0,
    ) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
        self.model = parallel(nn.Sequential(*layers, nn.Linear(width, 10)).to(device))
        torch.manual_seed(seed)
        self._x = torch.randn(width, width, device=device)
        self._y = torch.randint(0, 10, (width,), device=device)
        self.opt = self._optimizer(device, rule)
        self._device, self._autocast = device, autocast
        self._scaler = torch.amp.GradScaler(device, enabled=autocast == torch.float16)

    def _optimizer(self, device: str, rule: str | None) -> torch.optim.Optimizer:
        base = torch.optim.Adam(self.model.parameters(), capturable=device == "cuda")
        if rule is None:
            return base
        if rule == "reciprocal":
            return metacurv.MetaCurvatureLR(base, model=self.model)
        return metacurv.MetaCurvatureLR(
            base,
            rule=rule,
            model=self.model,
            loss_fn=functional.cross_entropy,
            probe=[(self._x, self._y)],
            average=True,
        )

    def loss(self) -> Tensor:
        """Of the batch."""
        with torch.autocast(self._device, self._autocast, enabled=self._autocast is not None):
            return functional.cross_entropy(self.model(self._x), self._y)

    def step(self) -> None:
        """As a user's loop has it."""
        self.opt.zero_grad()
        loss = self.loss()
        if isinstance(self.opt, metacurv.MetaCurvatureLR):
            self.opt.update_curvature(loss)
        self._scaler.scale(loss).backward()
        self._scaler.step(self.opt)
        self._scaler.update()

    def captured_step(self) -> Work:
        """Replays a step without a reading, and keeps the tensors that it works on, which a graph does not."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()  # the first is a reading
        torch.cuda.current_stream().wait_stream(side)
        self.opt.zero_grad(set_to_none=False)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.loss().backward()
            self.opt.step()
            self.opt.zero_grad(set_to_none=False)
        return self._replay

    def _replay(self) -> None:
        self._graph.replay()

    def is_finite(self) -> bool:
        """All parameters."""
        return all(bool(p.isfinite().all()) for p in self.model.parameters())


def step_cases(device: str, width: int, steps: int) -> Iterator[Case]:
    """Due steps and others, in float32 and under autocast; captured ones on CUDA."""
    for rule in RULES:
        for autocast in (None, torch.bfloat16, torch.float16):
            ours = Training(device, width, rule, autocast=autocast)
            other = Training(device, width, None, autocast=autocast)
            where = f" under {str(autocast)[6:]} autocast" if autocast else ""
            yield Case(
                f"{steps} steps of Adam{where}, {rule} rule",
                _repeated(ours, steps),
                _repeated(other, steps),
                ours.is_finite,
            )
    if device == "cuda":
        yield _captured_case(width)


def _repeated(training: Training, steps: int) -> Work:
    def work() -> None:
        for _ in range(steps):
            training.step()

    return work


def _captured_case(width: int) -> Case:
    """A step between readings, replayed: its rate is read from where the last reading left it."""
    ours, other = (Training("cuda", width, rule) for rule in ("reciprocal", None))
    return Case(
        "replay of a captured step of Adam, reciprocal rule",
        ours.captured_step(),
        other.captured_step(),
        ours.is_finite,
    )
