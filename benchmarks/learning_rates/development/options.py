"""The options of ``python -m benchmarks.learning_rates.development``."""

from __future__ import annotations

import argparse
from pathlib import Path

from metacurv.experiment.argument_types import whole

from .plan import REPORTED, SEEDS
from .reference import BEGINS, BEGINS_PLAIN, FROM, RATES, WARM_UP
from .tasks import TASKS
from .variants import VARIANTS

USUAL_SEEDS = 4
DESCRIPTION = f"""
Train variants of the directional rule on the development tasks, and compare each with the best of a reference, a fixed grid of
constant rates. The table has the mean log ratio of errors, 0 for as good as the best of the reference and +0.1 for 10 % more
errors, and the rate that was held, with the factor by which seeds differ (one standard deviation). These are the figures by
which the rule's settings were chosen; the seeds are {SEEDS[0]} to {SEEDS[-1]}, and no result is reported on them. Killed, it
goes on when the same command is given again.
"""
EPILOG = f"""
The reference has rates {", ".join(f"{rate:g}" for rate in RATES)} (ten times that for SGD), each twice: with the rule's own
schedule (warm-up in {WARM_UP:g} of the steps; from {BEGINS:g} on from the average, at {FROM:g} of the rate, linear to zero),
and held plainly to {BEGINS_PLAIN:g} of the steps, then linear to zero. The error is the mean of validation and test error. A
run takes 1 to 8 seconds.
"""


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning_rates.development",
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT",
        help=f"some of {', '.join(map(repr, VARIANTS))} (default: all); the reference is trained in any case",
    )  # fmt: skip
    parser.add_argument(
        "--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), metavar="TASK",
        help=f"some of {', '.join(TASKS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=whole(1, len(SEEDS)), default=USUAL_SEEDS, metavar="N",
        help="how many; each sets data, initial weights and batches (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed-start", type=whole(0), default=SEEDS[0], metavar="N",
        help=f"the first seed (default: %(default)s); {REPORTED[0]} to {REPORTED[-1]}, the reported ones, are refused",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=whole(1), default=1, metavar="N",
        help="runs at a time, a process of one thread each (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("runs/development"), metavar="FOLDER",
        help="run folder (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--summary-only", action="store_true", help="run nothing; summarise what the run folder holds"
    )  # fmt: skip
    parser.add_argument(
        "--no-progress", action="store_false", dest="progress", help="no progress bar"
    )
    return parser
