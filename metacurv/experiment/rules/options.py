"""The options of ``python -m metacurv.experiment rules``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..argument_types import whole
from . import cost, sensitivity, settings
from .catalogue import PUBLISHED
from .directional import DIRECTIONAL
from .tasks import TASKS

GROUPS = {"grid": (), "published": tuple(PUBLISHED), "own": tuple(DIRECTIONAL)}
QUICK_TASKS = ("mlp-relu", "friedman", "digits-mlp")
QUICK_STEPS, QUICK_SEEDS = 150, 2
DESCRIPTION = """
Compare learning-rate rules on many tasks, from the same initial weights and on the same batches, over several seeds: a grid
of rates, schedules, warm-up and averaging, published optimizers without a rate to tune, and metacurv's rules. Ends with a
table of paired differences, JSON and a picture. Killed, it goes on when the same command is given again.
"""


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m metacurv.experiment rules", description=DESCRIPTION, allow_abbrev=False
    )
    parser.add_argument(
        "--tasks", nargs="+", choices=list(TASKS), metavar="TASK",
        help=f"of {', '.join(TASKS)} (default: all; with --quick {', '.join(QUICK_TASKS)})",
    )  # fmt: skip
    parser.add_argument(
        "--methods", nargs="+", choices=[*GROUPS, *PUBLISHED, *DIRECTIONAL], metavar="METHOD",
        help=f"groups {', '.join(GROUPS)}, or single ones of {', '.join([*PUBLISHED, *DIRECTIONAL])} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=whole(2), metavar="N",
        help=f"how many; each sets data, initial weights and batches (default: 10; {QUICK_SEEDS} with --quick)",
    )  # fmt: skip
    parser.add_argument(
        "--seed-start", type=whole(0), default=0, metavar="N",
        help="the first seed: settings tried on some seeds are to be judged on others (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=whole(1), metavar="N",
        help="runs at a time, a process of one thread each (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="run folder (default: runs/rules, or runs/rules-quick)",
    )
    parser.add_argument(
        "--quick", action="store_true",
        help=f"three tasks, {QUICK_STEPS} steps, {QUICK_SEEDS} seeds: under two minutes, to see it work; results mean little",
    )  # fmt: skip
    parser.add_argument(
        "--sensitivity", action="store_true",
        help="instead, the result against the learning rate that the user gives, 1e-6 to 1e-1, on "
        f"{', '.join(sensitivity.TASK_NAMES)}",
    )  # fmt: skip
    parser.add_argument(
        "--settings", action="store_true",
        help="instead, the result against sigma, kappa, interval, probe size, batch size and steps, on "
        f"{', '.join(settings.TASK_NAMES)}",
    )  # fmt: skip
    parser.add_argument(
        "--cost", action="store_true",
        help="instead, the time of the directional rule's steps over the base optimizer's, side by side, on "
        f"{', '.join(cost.TASK_NAMES)}",
    )  # fmt: skip
    parser.add_argument(
        "--summary-only",
        action="store_true",
        help="run nothing; summarise what the run folder holds, with --sensitivity or --settings draw it",
    )
    parser.add_argument(
        "--no-progress", action="store_false", dest="progress", help="no progress bars"
    )
    return parser


def chosen_tasks(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[str]:
    """Names, in the order given; ends the program where what is asked for is not done on one of them."""
    instead = {"--sensitivity": sensitivity, "--settings": settings, "--cost": cost}
    asked = [option for option in instead if getattr(arguments, option[2:])]
    if len(asked) > 1:
        parser.error(f"at most one of {', '.join(instead)} can be given, got {', '.join(asked)}")
    if not asked:
        return arguments.tasks or list(QUICK_TASKS if arguments.quick else TASKS)
    others = ["--quick", "--methods"]
    if asked[0] == "--cost":
        others += ["--seeds", "--jobs", "--summary-only"]
    if given := [name for name in others if getattr(arguments, name[2:].replace("-", "_"))]:
        parser.error(f"{asked[0]} does not go with {given[0]}")
    possible = instead[asked[0]].TASK_NAMES
    if foreign := [name for name in arguments.tasks or () if name not in possible]:
        parser.error(
            f"with {asked[0]} --tasks must be of {', '.join(possible)}, got {', '.join(foreign)}"
        )
    return arguments.tasks or list(possible)


def chosen_methods(names: list[str] | None) -> list[str]:
    """Methods beside the grid, groups spelt out, each once; all for None."""
    spelt = [method for name in names or GROUPS for method in GROUPS.get(name, (name,))]
    return list(dict.fromkeys(spelt))
