"""The emulator itself: it runs what CUDA allows, under every schedule to the same end, and sees what CUDA does not allow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cuda.emulation.build import HERE, build, environment
from tests.cuda.emulation.emulated import SCHEDULES, Schedule
from tests.cuda.emulation.self_test import POISON, SelfTest

Builder = Callable[[str], Path]
# Blocks that take turns, in many orders.
INTERLEAVED = [Schedule("random", seed, resident=1 + seed % 5) for seed in range(24)]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """The library of self_test.cu for a sanitizer, built once."""
    found: dict[str, Path] = {}

    def library(sanitizer: str) -> Path:
        if sanitizer not in found:
            folder = tmp_path_factory.mktemp(f"self{sanitizer}")
            found[sanitizer] = build(folder, sanitizer=sanitizer, kernels=[HERE / "self_test.cu"])
        return found[sanitizer]

    return library


@pytest.fixture(scope="session")
def plain(built: Builder) -> SelfTest:
    return SelfTest(built(""))


@pytest.fixture(scope="session")
def delayed(built: Builder) -> SelfTest:
    return SelfTest(built("delayed"))


def ends(kernels: SelfTest, name: str, blocks: int, threads: int, out: list[float]) -> set[str]:
    """All that comes out, over all schedules: results as text, or faults."""
    found = set()
    for schedule in SCHEDULES + INTERLEAVED:
        try:
            found.add(repr(kernels.run(name, blocks, threads, out, schedule)))
        except RuntimeError as error:
            found.add(str(error))
    return found


def test_indices(plain: SelfTest) -> None:
    expected = [1000.0 * b + t + 3 for b in range(3) for t in range(64)]
    assert ends(plain, "indices", 3, 64, [POISON] * 192) == {repr(expected)}


def test_votes(plain: SelfTest) -> None:
    odd = float(0xAAAAAAAA)
    expected = []
    for thread in range(64):
        any_is_63 = 2.0 if thread >= 32 else 0.0
        expected += [odd, any_is_63, float(0xAA) if thread % 32 < 8 else 0.0]
    assert ends(plain, "votes", 1, 64, [POISON] * 192) == {repr(expected)}


def test_shuffles(plain: SelfTest) -> None:
    expected: list[float] = []
    for thread in range(64):
        lane, base = thread % 32, thread // 32 * 32
        down, up = lane + 5 if lane < 27 else lane, lane - 5 if lane >= 5 else lane
        expected += [base + 31.0 - lane, base + down, base + up, base + (lane ^ 6)]
    assert ends(plain, "shuffles", 1, 64, [POISON] * 256) == {repr(list(map(float, expected)))}


def test_masks_of_halves(plain: SelfTest) -> None:
    values = []
    for thread in range(64):
        lane, half = thread % 32, thread // 16 * 16
        turns = 3 if lane < 16 else 1
        values.append(float(half + (lane + turns) % 16 + 100 * turns))
    expected = []
    for thread in range(64):
        expected += [values[thread], values[thread // 32 * 32 + 31 - thread % 32]]
    assert ends(plain, "masks_of_halves", 1, 64, [POISON] * 128) == {repr(expected)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "delayed"])
def test_atomics(kind: str, request: pytest.FixtureRequest) -> None:
    kernels: SelfTest = request.getfixturevalue(kind)
    n = 5 * 64
    (end,) = ends(kernels, "atomics", 5, 64, [0.0] * 4)
    sums = eval(end)  # a list that repr made
    assert (sums[0], sums[1], sums[3]) == (n, 63, 2 * n)
    assert sums[2].hex() == (n * 5e-324).hex()  # the bits of a count


def test_dynamic_shared_memory(plain: SelfTest) -> None:
    expected = [63.0 - t for t in range(64)]
    assert ends(plain, "dynamic_memory", 2, 64, [POISON] * 64) == {repr(expected)}


@pytest.mark.parametrize("kind", ["plain", "delayed"])
def test_the_last_block_adds_what_was_fenced(kind: str, request: pytest.FixtureRequest) -> None:
    kernels: SelfTest = request.getfixturevalue(kind)
    for end in ends(kernels, "last_block_adds", 6, 64, [0.0] * 8):
        assert eval(end)[7] == 21  # 1 + ... + 6


def test_a_missing_fence_is_seen_where_stores_are_late(delayed: SelfTest) -> None:
    found = {eval(end)[7] for end in ends(delayed, "last_block_without_fence", 6, 64, [0.0] * 8)}
    assert found - {21}, "every schedule gave the right sum"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("divergent_barrier", "for ever: thread .* has ended"),
        ("two_barriers", "for ever: thread .* waits at self_test.cu"),
        ("mask_without_caller", "with a mask that lacks it"),
        ("read_outside_mask", "reads from a lane outside its mask"),
        ("two_masks", "for ever"),
        ("lane_that_ended", "for ever: thread .* has ended"),
        ("beyond_dynamic_memory", "beyond the dynamic shared memory"),
    ],
)
def test_what_cuda_does_not_allow_is_a_fault(plain: SelfTest, name: str, why: str) -> None:
    for schedule in SCHEDULES:
        with pytest.raises(RuntimeError, match=why):
            plain.run(name, 1, 64, [POISON] * 64, schedule)


def test_shared_memory_begins_as_poison(plain: SelfTest) -> None:
    (end,) = ends(plain, "not_written", 1, 32, [POISON] * 32)
    assert end == repr([float("nan")] * 32)


def test_a_race_has_several_ends(plain: SelfTest) -> None:
    assert len(ends(plain, "missing_barrier", 1, 64, [POISON] * 64)) > 1


@pytest.mark.parametrize(("blocks", "threads"), [(0, 32), (1, 0), (1, 2048), (1, 33)])
def test_a_grid_that_cannot_be_is_refused(plain: SelfTest, blocks: int, threads: int) -> None:
    with pytest.raises(RuntimeError, match=r"cannot be launched|whole warps"):
        plain.run("indices", blocks, threads, [0.0], SCHEDULES[0])


def run_under(
    library: Path, sanitizer: str, *kernels: str | int
) -> subprocess.CompletedProcess[str]:
    """Runs names and numbers of blocks in a process of its own, on two threads of the host where races are looked for."""
    workers = ["--workers", "2"] if sanitizer == "thread" else []
    return subprocess.run(
        [sys.executable, str(HERE / "self_test.py"), str(library), *map(str, kernels), *workers],
        env={**os.environ, **environment(sanitizer)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizer", "name", "blocks", "says"),
    [
        ("thread", "missing_barrier", 1, "data race"),
        ("thread", "race_between_blocks", 8, "data race"),
        ("thread", "last_block_without_fence", 8, "data race"),
        ("address", "beyond_the_end", 1, "AddressSanitizer"),
        ("undefined", "misaligned", 1, "misaligned address"),
    ],
)
def test_a_sanitizer_sees(
    built: Builder, sanitizer: str, name: str, blocks: int, says: str
) -> None:
    done = run_under(built(sanitizer), sanitizer, name, blocks)
    assert done.returncode != 0
    assert says in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address", "undefined"])
def test_a_sanitizer_has_nothing_to_say(built: Builder, sanitizer: str) -> None:
    kernels = {"atomics": 8, "last_block_adds": 8, "dynamic_memory": 1, "shuffles": 1}
    done = run_under(built(sanitizer), sanitizer, *(x for pair in kernels.items() for x in pair))
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(kernels)
