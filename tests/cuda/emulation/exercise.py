"""Runs every op of an emulated library on small inputs, for sanitizers and planted faults:

    python tests/cuda/emulation/exercise.py LIBRARY [--workers N] [--dtypes NAME ...]

Prints what went wrong, a line each: results that differ from the twin or between schedules, guards that were written
to, and faults that the emulator saw. Exits with status 1 where there was any; a sanitizer ends the process itself.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from metacurv.ops.backend import TWINS as twin
from tests.cuda.emulation.emulated import PROBE, SEED, EmulatedOps, Schedule, whole_numbers
from tests.helpers import DTYPES

SCHEDULES = (
    Schedule("ascending"),
    Schedule("descending"),
    *(Schedule("random", seed) for seed in range(3)),
    Schedule("random", 3, resident=3),
)
GUARD = 64

# Of a case's name, and the .cu files that it runs.
FILES = {
    "rademacher_": {"rademacher"},
    "statistics": {"signed_sum"},
    "signed_sum": {"signed_sum"},
    "reciprocal_lr_": {"reciprocal_lr"},
}

Ops = object  # the emulated ops, or the twins: ops by attribute
Case = Callable[[Ops], Sequence[torch.Tensor]]


def guarded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Room like ``x`` in a larger buffer of 7s, and the buffer."""
    buffer = torch.full((x.numel() + 2 * GUARD,), 7, dtype=x.dtype)
    return buffer[GUARD : GUARD + x.numel()].view(x.shape), buffer


def lists(dtype: torch.dtype) -> Iterator[list[torch.Tensor]]:
    """Ragged tails, starts that are not aligned, more than one tile, strides, more tensors than one table holds."""
    yield [whole_numbers(n, dtype=dtype, seed=n) for n in (1, 33, 131, 4097)]
    yield [
        whole_numbers(16_390, dtype=dtype)[3:],
        whole_numbers(40, 50, dtype=dtype)[1::2, ::3],
        whole_numbers(7, 9, 11, dtype=dtype)[::2, ::2, ::2],
    ]
    yield [whole_numbers(n % 40, dtype=dtype, seed=n) for n in range(70)]


def cases(dtypes: Sequence[torch.dtype] = DTYPES) -> dict[str, Case]:
    found: dict[str, Case] = {}
    for dtype in dtypes:
        for i, tensors in enumerate(lists(dtype)):
            coordinates = (
                [9 + n for n in range(len(tensors))],
                [2**61 - 7 + n for n in range(len(tensors))],
            )

            def fill(ops, tensors=tensors, coordinates=coordinates):
                rooms, buffers = zip(*map(guarded, tensors), strict=True)
                ops.rademacher_(list(rooms), SEED, PROBE, *coordinates)
                return buffers

            def fill_in_place(ops, tensors=tensors, coordinates=coordinates):
                bases = [x._base.clone() if x._base is not None else x.clone() for x in tensors]
                views = [
                    base.as_strided(x.shape, x.stride(), x.storage_offset())
                    for base, x in zip(bases, tensors, strict=True)
                ]
                ops.rademacher_(views, SEED, PROBE, *coordinates)
                return bases

            def accumulate(ops, tensors=tensors, coordinates=coordinates):
                mean, m2 = (torch.zeros(len(tensors) + 1, dtype=torch.float64) for _ in range(2))
                count = torch.zeros((), dtype=torch.int64)
                for probe in range(3):  # M2 is 0 after the first
                    ops.hutchinson_accumulate_(
                        mean, m2, count, tensors, SEED, torch.tensor(probe), *coordinates
                    )
                sums = ops.signed_sum(tensors, SEED, PROBE, *coordinates)
                return [mean, m2, count, sums]

            name = f"{str(dtype)[6:]}, list {i}"
            found |= {
                f"rademacher_, {name}": fill,
                f"rademacher_ in place, {name}": fill_in_place,
                f"statistics, {name}": accumulate,
            }
    # A finish takes 960 tensors. 512 partial sums are a warp's to add, more the whole block's.
    sizes = [int(n % 20 == 19 or n > 957) for n in range(962)]  # an empty tensor has no block
    many = [torch.full((size,), float(n)) for n, size in enumerate(sizes)]
    long, longer = (torch.ones(1).expand(tiles * 16384) for tiles in (512, 513))
    found["signed_sum of many tensors and many tiles"] = lambda ops: [
        # The warp's long tensor comes last and is not warp 0's: no barrier after it, so that a race with thread 0 shows.
        ops.signed_sum(
            # Two longer ones in turn: the block's second sum must wait for its first.
            [*many[:960], torch.ones(5), longer, longer, long],
            SEED,
            PROBE,
            list(range(964)),
            [*[3] * 961, 0, 0, 0],  # a tile less than from anywhere else
        )
    ]
    for n in (960, 962):

        def accumulate_ones(ops, n=n):
            mean, m2 = (torch.zeros(n + 1, dtype=torch.float64) for _ in range(2))
            count = torch.zeros((), dtype=torch.int64)
            coordinates = SEED, PROBE, list(range(n)), [0] * n
            ops.hutchinson_accumulate_(mean, m2, count, many[:n], *coordinates)
            return [mean, m2, count]

        found[f"statistics of {n} tensors"] = accumulate_ones
    found["reciprocal_lr_"] = shrink_scales
    return found


def shrink_scales(ops: Ops) -> list[torch.Tensor]:
    scales = []
    for dtype, reading in itertools.product((torch.float32, torch.float64), repeat=2):
        for previous, trace in itertools.product(
            (0.3, 1.0, 2.0**-40, 0.0, float("nan")), (12.5, 1e30, -1.0, float("inf"), float("nan"))
        ):
            scales.append(torch.tensor(previous, dtype=dtype))
            ops.reciprocal_lr_(scales[-1], torch.tensor(trace, dtype=reading), 0.1)
    return [torch.stack(scales).nan_to_num(-1)]  # NaN, which never comes, is not equal to itself


def files_of(name: str) -> set[str]:
    """Stems of the .cu files that a case runs."""
    return next(files for prefix, files in FILES.items() if name.startswith(prefix))


def problems(
    ops: EmulatedOps,
    schedules: Sequence[Schedule],
    only: set[str] | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
) -> Iterator[str]:
    """What differs from the twin, under any schedule; ``only``: stems of .cu files, of which a case must run one."""
    for name, case in cases(dtypes).items():
        if only is not None and not only & files_of(name):
            continue
        expected = case(twin)
        for schedule in schedules:
            with ops.under(schedule):
                try:
                    results = case(ops)
                except RuntimeError as error:
                    yield f"{name}, {schedule}: {str(error).splitlines()[0][:300]}"
                    break
            if not all(torch.equal(*each) for each in zip(results, expected, strict=True)):
                yield f"{name}, {schedule}: not what the twin gives"
                break


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", type=Path)
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="one schedule only, with blocks on N host threads",
    )
    parser.add_argument("--first", action="store_true", help="stop at the first problem")
    parser.add_argument("--only", nargs="+", metavar="STEM", help="cases that run these .cu files")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=[str(dtype)[6:] for dtype in DTYPES],
        default=[str(dtype)[6:] for dtype in DTYPES],
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    schedules = SCHEDULES
    if arguments.workers:
        schedules = (Schedule("random", 5, workers=arguments.workers),)
    found = 0
    only = set(arguments.only) if arguments.only else None
    dtypes = [getattr(torch, name) for name in arguments.dtypes]
    for problem in problems(EmulatedOps(arguments.library), schedules, only, dtypes):
        print(problem, flush=True)
        found += 1
        if arguments.first:
            break
    sys.exit(1 if found else 0)
