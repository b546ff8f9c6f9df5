"""Time to a given relative standard error: the one fair way to compare methods that scatter differently.

A method that averages K samples of relative standard deviation s reaches the error eps with K = (s / eps)^2 samples, one at
least, in t(K) = a + b K seconds. Where that K is too large to be timed often, a and b follow from two smaller ones, timed in
the same turn. Exact methods take their plain time. Two methods take turns, as in ``ratio``, and the result is the median of
the ratios.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from time import perf_counter

import torch

from benchmarks.curvature_truth import Kind, truth
from benchmarks.curvature_workloads import CNN, MLP, SEED, TRANSFORMER, Workload
from benchmarks.kept import kept
from benchmarks.peers.peer import Peer, Trace, version
from benchmarks.ratio import MIN_PAIRS, Paired, Turn, calls_in_a_turn, paired, turn

# The two sample counts that are timed in place of larger ones.
ANCHORS = {MLP: (64, 128), CNN: (16, 32), TRANSFORMER: (4, 8)}
SKETCH_ANCHORS = (300, 600)
SINGLE_DRAWS = {MLP: 400, CNN: 200, TRANSFORMER: 60}
SKETCHES = 12
# Relative, of float32 against float64: the error of what is exact.
ROUNDING = 2e-5


@cache
def deviation(peer: Peer, workload: Workload) -> float:
    """Relative standard deviation of one sample, 0 where it is exact."""
    known = truth(workload, peer.kind)
    if peer.noise == "none":
        return 0.0
    if peer.noise != "draw":
        return known.probe_deviation
    draws = SINGLE_DRAWS[workload.family]

    def find() -> dict[str, float]:
        call = peer.make(workload, 1)
        return {"deviation": statistics.stdev(_readings(call, draws)) / abs(known.value)}

    if peer.package == "metacurv":  # may change from day to day
        return find()["deviation"]
    return kept(f"deviation of {version(peer)} {peer.name}, {draws} draws", workload, find)[
        "deviation"
    ]


def _readings(call: Trace, n: int) -> list[float]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return [call() for _ in range(n)]


def samples_for(peer: Peer, workload: Workload, rtol: float) -> int:
    """The least number of samples with a relative standard error of at most ``rtol``."""
    needed = max(1, math.ceil((deviation(peer, workload) / rtol) ** 2))
    if peer.noise != "sketch":
        return needed
    found = kept(
        f"samples of {version(peer)} {peer.name} to {rtol:g}, {SKETCHES} readings",
        workload,
        lambda: {"samples": _sketch_samples(peer, workload, rtol, needed)},
    )
    return int(found["samples"])


def _sketch_samples(peer: Peer, workload: Workload, rtol: float, plain: int) -> int:
    """By trial, between powers of two; not beyond the ``plain`` probes without a sketch, which would do as well."""
    value = truth(workload, peer.kind).value
    before: tuple[int, float] | None = None
    k = 4 * peer.multiple
    while k < min(plain, SKETCH_ANCHORS[1]):
        errors = [r / value - 1 for r in _readings(peer.make(workload, k), SKETCHES)]
        error = math.sqrt(statistics.fmean(e * e for e in errors))
        if error <= rtol:
            if before is None:
                return k
            slope = math.log(k / before[0]) / math.log(before[1] / error)
            between = before[0] * (before[1] / rtol) ** slope
            return peer.multiple * math.ceil(between / peer.multiple)
        before = (k, error)
        k *= 2
    return peer.multiple * math.ceil(plain / peer.multiple)


@dataclass(frozen=True)
class Contender:
    """A method on a workload, with the samples that it needs.

    ``timed``: the calls to time, one at ``samples``, or two at smaller counts.
    """

    peer: Peer
    workload: Workload
    samples: int
    timed: tuple[tuple[int, Trace], ...]

    def seconds(self, times: list[float]) -> float:
        """Of a reading with ``samples``, from the seconds of ``timed``."""
        if len(times) == 1:
            return times[0]
        (low, _), (high, _) = self.timed
        slope = (times[1] - times[0]) / (high - low)
        # The time of the larger one, and what is missing to all samples.
        return times[1] + slope * (self.samples - high)

    def error(self, k: int) -> float:
        """Relative standard error of a reading with ``k`` samples; for a sketch a bound."""
        return math.hypot(
            ROUNDING, deviation(self.peer, self.workload) / math.sqrt(k / self.peer.multiple)
        )

    def check(self, kind: Kind, readings: int = 4) -> tuple[float, float]:
        """The mean of a few readings and its standard error, for the last of ``timed``.

        Raises:
            AssertionError: it lies more than 4 standard errors from the truth.
        """
        k, call = self.timed[-1]
        known = truth(self.workload, kind)
        value = statistics.fmean(_readings(call, readings))
        error = abs(known.value) * self.error(k) / math.sqrt(readings)
        joint = math.hypot(error, known.stderr)
        assert abs(value - known.value) < 4 * joint, (self.peer.name, k, value, known.value, joint)
        return value, error


def contender(peer: Peer, workload: Workload, rtol: float) -> Contender:
    samples = samples_for(peer, workload, rtol)
    low, high = SKETCH_ANCHORS if peer.noise == "sketch" else ANCHORS[workload.family]
    counts = (samples,) if samples <= high else (low, high)
    return Contender(peer, workload, samples, tuple((k, peer.make(workload, k)) for k in counts))


Entry = tuple[Contender, list[int]]


def race(ours: Contender, other: Contender, *, seconds: float) -> Paired:
    """How many times faster ``ours`` reaches the error; takes turns for about ``seconds``, at least MIN_PAIRS times."""
    entries: list[Entry] = [
        (side, [calls_in_a_turn(call) for _, call in side.timed]) for side in (ours, other)
    ]
    pairs: list[tuple[Turn, Turn]] = []
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        end = perf_counter() + seconds
        while len(pairs) < MIN_PAIRS or perf_counter() < end:
            if len(pairs) % 2:
                second = _lap(entries[1])
                pairs.append((_lap(entries[0]), second))
            else:
                pairs.append((_lap(entries[0]), _lap(entries[1])))
    finally:
        if collecting:
            gc.enable()
    return paired(pairs)


def _lap(entry: Entry) -> Turn:
    side, calls = entry
    turns = [turn(call, n) for (_, call), n in zip(side.timed, calls, strict=True)]
    return Turn(side.seconds([t.thread for t in turns]), side.seconds([t.wall for t in turns]))


def quick_seconds(side: Contender, repeats: int = 3) -> float:
    """A first idea of the time to the error, to choose by."""
    best = []
    for _, call in side.timed:
        call()
        best.append(min(turn(call, 1).thread for _ in range(repeats)))
    return side.seconds(best)


def quickest(peers: list[Peer], workload: Workload, rtol: float) -> Contender:
    """Of several ways the one that seems to reach the error first."""
    sides = [contender(peer, workload, rtol) for peer in peers]
    return min(sides, key=quick_seconds)


def extra(
    call: Callable[[], object],
    base: Callable[[], object],
    unit: Callable[[], object],
    *,
    seconds: float,
) -> Paired:
    """What ``call`` takes beyond ``base``, against ``unit``, from turns that hold all three."""
    calls = [(f, calls_in_a_turn(f)) for f in (call, base, unit)]
    pairs: list[tuple[Turn, Turn]] = []
    end = perf_counter() + seconds
    while len(pairs) < MIN_PAIRS or perf_counter() < end:
        whole, part, one = (turn(f, n) for f, n in calls)
        pairs.append((Turn(whole.thread - part.thread, whole.wall - part.wall), one))
    return paired(pairs)
