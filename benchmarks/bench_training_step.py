"""A whole training step (forward, backward, step) under MetaCurvatureLR, against the same step under plain Adam."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import metacurv
from benchmarks.conftest import Versus
from benchmarks.lines import SMALL, key
from benchmarks.workloads import BATCH, SEED, batch, loss_function, mlp

pytestmark = pytest.mark.benchmark(
    group="training step", min_rounds=5, max_time=0.5, warmup=True, disable_gc=True
)

BATCHES = 40
STEPS = 10  # a call, so that a call of "every 10th" has one reading
NEVER = 1 << 40
UPDATE_FREQ = {"not due": NEVER, "every 10th": STEPS}


class Training:
    """A network in training. With alpha = 0 the rule runs and its scale is 1, so MetaCurvatureLR must train as Adam does."""

    def __init__(self, update_freq: int | None) -> None:
        """``update_freq`` None: plain Adam."""
        self.model = mlp(SMALL)
        self.opt: Any = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.measures = update_freq is not None
        if update_freq is not None:
            self.opt = metacurv.MetaCurvatureLR(
                self.opt, alpha=0.0, update_freq=update_freq, seed=SEED
            )
        x, y = batch(SMALL, BATCH * BATCHES)
        pairs = zip(x.split(BATCH), y.split(BATCH), strict=True)
        self.batches = itertools.cycle(list(pairs))
        self()  # the reading at step 0

    def __call__(self) -> None:
        """STEPS training steps."""
        model, opt, batches = self.model, self.opt, self.batches
        for _ in range(STEPS):
            x, y = next(batches)
            opt.zero_grad()
            loss = loss_function(model(x), y)
            if self.measures:
                opt.update_curvature(loss)
            loss.backward()
            opt.step()

    def weights(self) -> torch.Tensor:
        return torch.nn.utils.parameters_to_vector(self.model.parameters())


@pytest.mark.parametrize("due", UPDATE_FREQ)
@pytest.mark.parametrize("impl", ["metacurv", "Adam"])
def test_training_step(impl: str, due: str, benchmark: Any, versus: Versus) -> None:
    update_freq = UPDATE_FREQ[due]
    make: dict[str, Callable[[], Training]] = {
        "metacurv": lambda: Training(update_freq),
        "Adam": lambda: Training(None),
    }
    benchmark(make[impl]())
    benchmark.extra_info.update(
        impl=impl,
        size=due,
        n=sum(p.numel() for p in mlp(SMALL).parameters()),
        K=1 if impl == "metacurv" else None,
        steps=STEPS,
        backend="native" if impl == "metacurv" else None,
    )
    ours, other = make["metacurv"](), make["Adam"]()
    for _ in range(5):
        ours()
        other()
    assert torch.equal(ours.weights(), other.weights())
    assert ours.opt.last_estimate is not None
    if impl == "Adam":
        versus(key("training step", due, impl), ours, other)
