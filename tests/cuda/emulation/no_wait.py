"""Trains on stand-ins for CUDA tensors, due and other steps alike, with an alarm for whatever would wait for the GPU:

    python tests/cuda/emulation/no_wait.py LIBRARY

LIBRARY is stand_in.cpp, compiled. Prints a line for each case; exits with 1 where one waits or keeps more memory from step
to step, where its learning rates are not those of the same training on the CPU, or where one that does wait goes unnoticed.
"""

from __future__ import annotations

import ctypes
import gc
import sys

if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1])  # before torch looks for a GPU for the first time

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import metacurv
from metacurv.ops import _native
from tests.cuda.emulation.stand_in import StandIn, WouldWait, alarm, stand_in_device

STEPS, SETTLED, COMPARED = 30, 20, 8
EARLY, LOOKS_EVERY = 20, 5  # steps of the directional rule: see ``may_wait``
BASES = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adadelta", "Rprop")
# Without foreach these turn a rate in a tensor into a number at every step, with or without this package.
WAITING_BASES = ("RMSprop", "Adadelta")
Make = Callable[[nn.Module, Tensor, Tensor], torch.optim.Optimizer]
Network = Callable[[], nn.Module]


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def with_buffers(inputs: int = 8, outputs: int = 4) -> nn.Module:
    """And with random numbers, both of which a reading puts back."""
    return nn.Sequential(
        nn.Unflatten(1, (1, inputs)),
        nn.Conv1d(1, 4, 3, bias=False),  # before a norm its gradient would be rounding alone
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(4 * (inputs - 2), outputs),
    )


def may_wait(name: str, step: int) -> bool:
    """Tells whether ``step``, counted from 0, is one in which the rule decides by numbers that it has measured.

    That is the first, on RAdam each of the first six, and with the directional rule every second of the early steps and those
    after which the guard looks. The new beginning and the warm-up never wait. A race, which looks after every step, is no case.
    """
    if step < (7 if "RAdam" in name else 1):
        return True
    if "directional" not in name:
        return False
    if "horizon" in name:  # of STEPS steps: three early ones, and then the guard's looks
        return step < 3 or (step + 1) % LOOKS_EVERY == 0 or step + 1 == STEPS
    early = step - (5 if "RAdam" in name else 0)  # RAdam's first five steps are not normalised
    return early < EARLY and early % 2 == 0


def bare(base: str, *, tensor_lr: bool = False, foreach: bool = True) -> Make:
    """The base alone."""

    def make(model: nn.Module, x: Tensor, y: Tensor) -> torch.optim.Optimizer:
        device = next(model.parameters()).device
        lr = torch.tensor(1e-3, device=device) if tensor_lr else 1e-3
        # On the CPU there is no such thing, and no need.
        on_device = device.type == "cuda"
        # foreach is what torch takes by itself on a GPU, though not for a subclass of tensors.
        options = {"lr": lr, "capturable": on_device, "foreach": foreach and on_device}
        return getattr(torch.optim, base)(model.parameters(), **options)

    return make


def reciprocal(base: Make, **options: object) -> Make:
    def make(model: nn.Module, x: Tensor, y: Tensor) -> torch.optim.Optimizer:
        return metacurv.MetaCurvatureLR(base(model, x, y), model=model, update_freq=2, **options)

    return make


def directional(base: Make, **options: object) -> Make:
    def make(model: nn.Module, x: Tensor, y: Tensor) -> torch.optim.Optimizer:
        return metacurv.MetaCurvatureLR(
            base(model, x, y),
            rule="directional",
            model=model,
            loss_fn=functional.cross_entropy,
            probe=[(x[i : i + 8], y[i : i + 8]) for i in range(0, 32, 8)],
            **options,
        )

    return make


def looking(base: Make) -> Make:
    """The reciprocal rule, with a callback that looks at every reading."""
    return reciprocal(base, on_update=lambda record: None)


def cases() -> Iterator[tuple[str, Make, Network]]:
    """That must not wait."""
    for name, make in on_a_perceptron():
        yield name, make, perceptron
    adam = bare("Adam")
    for estimator in ("hutchinson", "auto"):
        yield (
            f"reciprocal, buffers, {estimator}",
            reciprocal(adam, estimator=estimator),
            with_buffers,
        )
    yield "directional, buffers", directional(adam, average=True), with_buffers


def on_a_perceptron() -> Iterator[tuple[str, Make]]:
    for i, name in enumerate(BASES):
        for tensor_lr in (False, True) if name == "Adam" else (i % 2 == 0,):
            base = bare(name, tensor_lr=tensor_lr)
            kind = f"{name}, lr {'a tensor' if tensor_lr else 'a number'}"
            yield f"reciprocal, {kind}", reciprocal(base)
            if name != "Rprop":  # makes step lengths of its own
                yield f"directional, {kind}", directional(base)
    adam = bare("Adam")
    yield (
        "reciprocal, smoothed, two probes",
        reciprocal(adam, smoothing=0.9, n_hutchinson_samples=2),
    )
    for estimator in ("activation", "exact", "auto"):
        yield f"reciprocal, {estimator}", reciprocal(adam, estimator=estimator)
    yield "directional, horizon and average", directional(adam, horizon=STEPS, average=True)


def waiting_cases() -> Iterator[tuple[str, Make]]:
    """That must be seen to wait."""
    yield "a callback that looks", looking(bare("Adam"))
    for name in WAITING_BASES:
        yield f"{name} alone, lr a tensor", bare(name, tensor_lr=True, foreach=False)


class GrowsError(Exception):
    """The last step left more memory in use than one long before it."""


def memory_in_use() -> int:
    """By all tensors, in bytes."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), Tensor)]
    storages = [x.untyped_storage() for x in tensors if not isinstance(x, StandIn)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def single_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """That must be seen to wait, or to be refused as on a GPU."""
    on_device, on_host, number = torch.ones(3, device="cuda"), torch.ones(3), torch.tensor(1.0)
    yield "item", on_device[0].item
    yield "tolist", on_device.tolist
    yield "repr", lambda: repr(on_device)
    yield "nonzero", on_device.nonzero
    yield "equal", lambda: torch.equal(on_device, on_device)
    yield "allclose", lambda: torch.allclose(on_device, on_device)
    yield "an index that is a mask", lambda: on_device[on_device > 0]
    yield "cpu", on_device.cpu
    yield "to cuda", lambda: on_host.to("cuda")
    yield "copy_", lambda: on_device.copy_(on_host)
    yield "_foreach_copy_ to the device", lambda: torch._foreach_copy_([on_device], [on_host])
    yield "_foreach_copy_ to the host", lambda: torch._foreach_copy_([on_host], [on_device])
    yield "add_ on the host", lambda: number.add_(on_device[0])
    yield "out= on the host", lambda: torch.add(on_device[0], 1, out=number)


def goes_unnoticed(call: Callable[[], object]) -> bool:
    with alarm():
        try:
            call()
        except (WouldWait, RuntimeError):
            return False
    return True


def train(
    make: Make,
    device: str,
    network: Network = perceptron,
    *,
    may_wait: Callable[[int], bool] | None = None,
) -> list[float]:
    """The rates after a few steps: later, rounding has made different trainings of them.

    Raises:
        WouldWait: in a step that may not wait; None: all may.
        GrowsError: after the last step, where some may not wait.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 8, generator=generator).to(device)
    y = torch.randint(0, 4, (32,), generator=generator).to(device)
    torch.manual_seed(0)
    with torch.device(device):
        model = network()
    optimizer = make(model, x, y)
    measures = isinstance(optimizer, metacurv.MetaCurvatureLR)
    rates: list[float] = []
    for step in range(COMPARED + 1 if may_wait is None else STEPS):
        if step == COMPARED and measures:
            rates = optimizer.effective_lrs
        with nullcontext() if may_wait is None or may_wait(step) else alarm():
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            if measures:
                optimizer.update_curvature(loss)
            loss.backward()
            optimizer.step()
        del loss
        if step == SETTLED:
            in_use = memory_in_use()
    if may_wait is not None and (more := memory_in_use() - in_use) > 0:
        raise GrowsError(f"{more} bytes more after {STEPS - 1 - SETTLED} steps")
    return rates


def fault(name: str, make: Make, network: Network = perceptron) -> str:
    """What it waits for, or how much it grows; "" for nothing."""
    try:
        train(make, "cuda", network, may_wait=partial(may_wait, name))
    except WouldWait as what:
        return f"waits: {what}"
    except GrowsError as how:
        return f"grows: {how}"
    return ""


def problems() -> Iterator[tuple[str, str]]:
    """Of every case: its name, and what is wrong or ""."""
    for kernels in ("twins", "ops") if _native.native_available() else ("twins",):
        # The ops of the package are dispatched like torch's own, here to their CPU kernels.
        _native.cuda_compiled = lambda kernels=kernels: kernels == "ops"
        for name, make, network in cases():
            differs_by_base = "lr a" in name and ", Adam, lr a number" not in name
            if kernels == "twins" and differs_by_base:
                continue  # the difference is not the kernels'
            problem = fault(name, make, network)
            if not problem:
                rates, expected = (train(make, device, network) for device in ("cuda", "cpu"))
                # RAdam's rectification in float32, as its capturable kind has it, is right to 1 % at these steps.
                rtol = 1e-2 if "RAdam" in name else 1e-3
                if not torch.allclose(torch.tensor(rates), torch.tensor(expected), rtol=rtol):
                    problem = f"rates {rates} for {expected} on the CPU"
            yield f"{name}, {kernels}", problem
    for name, call in single_calls():
        yield f"{name} sounds", "goes unnoticed" if goes_unnoticed(call) else ""
    for name, make in waiting_cases():
        yield f"{name} waits", "" if fault(name, make).startswith("waits") else "goes unnoticed"


def main() -> int:
    wrong = 0
    with stand_in_device():
        for name, problem in problems():
            wrong += bool(problem)
            print(f"{problem or 'ok'}: {name}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
