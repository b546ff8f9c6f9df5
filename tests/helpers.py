"""What tests share: devices, dtypes, tolerances and backends, each listed once, and the signs rebuilt from the contract."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch.profiler import ProfilerActivity, profile

import metacurv
from metacurv.optim.carried_state import put_in, taken_out

DEVICES: list[Any] = ["cpu"]
if torch.cuda.is_available() and metacurv.cuda_compiled():
    DEVICES.append(pytest.param("cuda", marks=pytest.mark.gpu))

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

# Relative. The issue states float32 and float64; bfloat16 keeps 8 bits, of which a Hessian-vector product loses some.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2.0**-4}

needs_native = pytest.mark.skipif(
    not metacurv.native_available(), reason="metacurv._C is not built: the torch twins run alone"
)
BACKENDS = [pytest.param("native", marks=needs_native), "reference"]
# "auto" has a road of its own for linear layers, also where it runs on the twins.
ESTIMATOR_BACKENDS = ["native" if metacurv.native_available() else "auto", "reference"]


def sampled(values: Iterable[Any], every: int) -> list[Any]:
    """Returns values for ``parametrize`` of which the quick suite takes each ``every``-th; the whole suite takes all."""
    return [
        pytest.param(value, marks=[pytest.mark.slow] if index % every else [])
        for index, value in enumerate(values)
    ]


# Nothing on disk, no time limit on a shared machine, the same examples in every run.
property_test = settings(
    max_examples=50,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)

SEEDS = [0, 1, 2**32 - 1, 2**63, 2**64 - 1]

_MASK = 0xFFFFFFFF


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 in Python integers, written from section 3.3 of Salmon et al. 2011 (SC'11).

    A round multiplies two words, keeps both halves, and xors the high halves with the other words and
    the key; the key then grows by the golden ratio and by sqrt(3) - 1.
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * x0, 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * x2, 1 << 32)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0 = (k0 + 0x9E3779B9) % (1 << 32)
        k1 = (k1 + 0xBB67AE85) % (1 << 32)
    return x0, x1, x2, x3


@functools.lru_cache(maxsize=512)
def contract_signs(
    numel: int, *, seed: int, probe: int, number: int = 0, offset: int = 0
) -> np.ndarray:
    """Elements offset ... offset + numel - 1 of a probe, int8 [numel], from the contract alone (csrc/philox.h has its text)."""
    if numel == 0:
        return np.empty(0, dtype=np.int8)
    key = (seed & _MASK, seed >> 32)
    first, last = offset // 128, (offset + numel - 1) // 128
    words = [philox((b & _MASK, b >> 32, number, probe), key) for b in range(first, last + 1)]
    bits = np.array(words, dtype="<u4").view(np.uint8)  # bit k of word w: element 32 w + k
    signs = 1 - 2 * np.unpackbits(bits, bitorder="little").astype(np.int8)
    start = offset - 128 * first
    return signs[start : start + numel]


def carved(numel: int, dtype: torch.dtype, device: str = "cpu", *, misalign: int = 0):
    """A tensor of 7s inside a larger buffer of 7s, and a check that a kernel wrote inside it only."""
    guard = 64
    buffer = torch.full((numel + 2 * guard + misalign,), 7, dtype=dtype, device=device)
    inside = buffer[guard + misalign : guard + misalign + numel]

    def assert_guards_untouched() -> None:
        assert bool((buffer[: guard + misalign] == 7).all())
        assert bool((buffer[guard + misalign + numel :] == 7).all())

    return inside, assert_guards_untouched


def assert_same(actual: Any, expected: Any, where: str = "value") -> None:
    """Asserts that both are equal in type, structure, order and every bit.

    A number that is nan equals nan, as the standard error of one probe; a tensor with a nan
    equals nothing.
    """
    assert type(actual) is type(expected), f"{where}: {type(actual)} and {type(expected)}"
    if isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype, where
        assert torch.equal(actual, expected), f"{where}: {actual} and {expected}"
    elif isinstance(expected, np.ndarray):
        assert np.array_equal(actual, expected), where
    elif isinstance(expected, dict):
        assert list(actual) == list(expected), where
        for key, value in expected.items():
            assert_same(actual[key], value, f"{where}[{key!r}]")
    elif dataclasses.is_dataclass(expected):
        assert_same(vars(actual), vars(expected), where)
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), where
        for index, value in enumerate(expected):
            assert_same(actual[index], value, f"{where}[{index}]")
    else:
        both_nan = actual != actual and expected != expected
        assert actual == expected or both_nan, f"{where}: {actual} and {expected}"


def peak_bytes(function: Callable[[], object]) -> int:
    """Most bytes held at once, among those that torch allocates while ``function`` runs."""
    function()  # anything made once in a process
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    events = profiled.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    assert most > 0
    return most


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that imports the metacurv of this process."""
    package_parent = str(Path(metacurv.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=package_parent,  # python -c looks there first
        env={**os.environ, "PYTHONPATH": package_parent, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run_without_native(code: str) -> str:
    """Runs ``code`` where there is no compiled module, and returns what it printed."""
    run = run_python("-c", "import sys; sys.modules['metacurv._C'] = None\n" + code)
    assert run.returncode == 0, run.stderr
    return run.stdout


def run_two_ranks(module: str, *arguments: object, folder: Path) -> tuple[Any, Any]:
    """Runs ``python -m module *arguments RANK folder`` for ranks 0 and 1, and returns what they saved as RANK.pt there.

    A rank that fails, or takes minutes, ends the other, which would wait for it.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in ranks:
            printed, _ = process.communicate(timeout=300)
            assert process.returncode == 0, printed
    finally:
        for process in ranks:
            process.kill()
    one, other = (torch.load(folder / f"{rank}.pt", map_location="cpu") for rank in range(2))
    return one, other


def as_one_of_two_ranks(main: Callable[[int], Any]) -> NoReturn:
    """Runs ``main(rank)`` in a process that ``run_two_ranks`` started, with a process group, and saves what it returns."""
    *_, rank, folder = sys.argv
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=int(rank), world_size=2
    )
    torch.save(main(int(rank)), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(
        0
    )  # on a busy machine gloo's threads outlive their owners now and then, and abort the interpreter's exit


def own(state_dict: dict[str, Any]) -> Any:
    """What a state dict holds of ours, None where there is nothing."""
    return taken_out(state_dict, [])[0]


def with_own(state_dict: dict[str, Any], changed: Any) -> dict[str, Any]:
    """The state dict with ``changed`` in the place of what it holds of ours."""
    return put_in(changed, taken_out(state_dict, [])[2])


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Within it a GPU's host must not wait; a test of it ignores torch's warning "Synchronization debug mode ..."."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
