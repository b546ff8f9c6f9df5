"""Nothing leaks: over 200 steps memory stays flat, and a dropped model is gone at once, without the
garbage collector.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from metacurv import MetaCurvatureLR, UpdateRecord
from tests.helpers import sampled

from .reciprocal_training import OPTIMIZERS, loss_of, mlp

pytestmark = pytest.mark.filterwarnings("ignore:Using backward:UserWarning")

Loop = Callable[[nn.Module, MetaCurvatureLR, int], None]


def new_loop(model: nn.Module, opt: MetaCurvatureLR, step: int) -> None:
    opt.zero_grad()
    loss = loss_of(model, step)
    opt.update_curvature(loss)
    loss.backward()
    opt.step()


def seeds_loop(model: nn.Module, opt: MetaCurvatureLR, step: int) -> None:
    opt.zero_grad()
    loss_of(model, step).backward(create_graph=True)
    opt.step()


def seeds_loop_zeroing(model: nn.Module, opt: MetaCurvatureLR, step: int) -> None:
    opt.zero_grad(set_to_none=False)
    loss_of(model, step).backward(create_graph=True)
    opt.step()


def seeds_loop_keeping_grads(model: nn.Module, opt: MetaCurvatureLR, step: int) -> None:
    """zero_grad after the step, so .grad lives through the next forward; and never on the last
    step.
    """
    loss_of(model, step).backward(create_graph=True)
    opt.step()
    opt.zero_grad(set_to_none=False)


def closure_loop(model: nn.Module, opt: MetaCurvatureLR, step: int) -> None:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = loss_of(model, step)
        opt.update_curvature(loss)
        loss.backward()
        return loss

    opt.step(closure)


def failing_base_loop(model: nn.Module, opt: MetaCurvatureLR, step: int) -> None:
    """The base raises on every step, and the user goes on."""

    def fail(*_: Any) -> None:
        raise RuntimeError("the base failed")

    handle = opt.optimizer.register_step_pre_hook(fail)
    opt.zero_grad()
    loss_of(model, step).backward(create_graph=True)
    with pytest.raises(RuntimeError, match="the base failed"):
        opt.step()
    handle.remove()


def failing_callback_loop(model: nn.Module, opt: MetaCurvatureLR, step: int) -> None:
    """on_update raises on every due step, from within step(), and the user goes on."""

    def fail(record: UpdateRecord) -> None:
        raise RuntimeError("from the callback")

    opt.on_update = fail
    opt.zero_grad()
    loss_of(model, step).backward(create_graph=True)
    with contextlib.suppress(RuntimeError):
        opt.step()


LOOPS: dict[str, Loop] = {
    loop.__name__: loop
    for loop in (
        new_loop,
        seeds_loop,
        seeds_loop_zeroing,
        seeds_loop_keeping_grads,
        closure_loop,
        failing_base_loop,
        failing_callback_loop,
    )
}


class Saved:
    """What autograd holds in place of a tensor saved for backward; it dies with the graph that
    saved it.
    """

    live = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        Saved.live += 1

    def __del__(self) -> None:
        Saved.live -= 1


@pytest.fixture(scope="module", autouse=True)
def _frozen_heap() -> Iterator[None]:
    """Keeps the collector away from what is there already, so that collecting takes no time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def _without_collector() -> Iterator[None]:
    """A leak that only the collector frees is a leak here."""
    gc.collect()
    gc.disable()
    Saved.live = 0
    yield
    gc.enable()


@pytest.fixture(params=["auto", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_counter_sees_the_leak_it_is_for() -> None:
    """backward(create_graph=True) without the wrapper: parameter -> .grad -> graph -> parameter."""
    model = mlp()
    with saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        before = Saved.live
        loss_of(model).backward(create_graph=True)
        assert Saved.live > before
    model.zero_grad()
    assert Saved.live == before


@pytest.mark.usefixtures("_without_collector")
@pytest.mark.parametrize("name", sampled(LOOPS, 3))
def test_no_graph_survives_a_step(name: str, backend: str) -> None:
    """Over 60 steps: after each, autograd holds no saved tensor at all."""
    model = mlp()
    opt = MetaCurvatureLR(
        torch.optim.Adam(model.parameters()),
        update_freq=3,
        n_hutchinson_samples=2,
        smoothing=0.5,
        backend=backend,
    )
    for step in range(60):
        with saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            LOOPS[name](model, opt, step)
        assert Saved.live == 0, f"step {step}"


def live_tensors() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.mark.usefixtures("_without_collector")
@pytest.mark.parametrize("name", sampled(LOOPS, 3))
def test_the_number_of_tensors_stays_flat(name: str, backend: str) -> None:
    """Over 60 steps, after the first due one."""
    model = mlp()
    opt = MetaCurvatureLR(
        torch.optim.Adam(model.parameters()), update_freq=5, smoothing=0.5, backend=backend
    )
    for step in range(6):
        LOOPS[name](model, opt, step)
    before = live_tensors()
    for step in range(6, 206):
        LOOPS[name](model, opt, step)
    assert live_tensors() <= before


@pytest.mark.usefixtures("_without_collector")
@pytest.mark.parametrize("optimizer", ["Adam", "SGD-fused"])
@pytest.mark.parametrize("name", LOOPS)
def test_a_dropped_model_is_freed_at_once(name: str, optimizer: str, backend: str) -> None:
    for steps in (1, 2, 3):  # ends on a due step, and between
        model = mlp()
        opt = MetaCurvatureLR(
            OPTIMIZERS[optimizer](list(model.parameters())), update_freq=2, backend=backend
        )
        for step in range(steps):
            LOOPS[name](model, opt, step)
        references = [weakref.ref(parameter) for parameter in model.parameters()]
        references.append(weakref.ref(opt))
        del model, opt
        assert [reference() for reference in references] == [None] * len(references)


@pytest.mark.usefixtures("_without_collector")
def test_a_loss_is_not_held() -> None:
    """After update_curvature the caller owns the only reference to the loss and its graph."""
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1))
    with saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        loss = loss_of(model)
        held = Saved.live
        opt.update_curvature(loss)
        assert Saved.live == held
    reference = weakref.ref(loss)
    del loss
    assert reference() is None
    assert Saved.live == 0


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", ["new_loop", "seeds_loop", "seeds_loop_zeroing"])
def test_resident_memory_stays_flat(name: str) -> None:
    """A graph of this model is 1 MiB at least, so 200 leaked ones would be 200 MiB."""
    model = nn.Sequential(nn.Linear(4, 16384), nn.Tanh(), nn.Linear(16384, 3))
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=1e-4), update_freq=4)
    for step in range(20):
        LOOPS[name](model, opt, step)
    before = resident_mib()
    for step in range(60):
        LOOPS[name](model, opt, step)
    assert resident_mib() - before < 40
