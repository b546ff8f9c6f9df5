"""The options of the experiment, and the configuration that they make."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import metacurv

from .argument_types import number, whole
from .config import SWEEP, Config
from .data import N_CLASSES, TRAIN_FRACTION
from .model import ACTIVATIONS

DEFAULTS = Config()
QUICK = {"seeds": 5, "steps": 2000, "eval_every": 100}
DESCRIPTION = """
Train the same network on mnist1d with Adam and with MetaCurvatureLR(Adam), by the directional rule and by the reciprocal rule,
from the same initial weights and on the same batches, over several seeds. Prints a table and a few sentences, and leaves a
picture and a report with paired 95% intervals and a verdict. Killed, it goes on when the same command is given again.
"""


def build_parser() -> argparse.ArgumentParser:
    """The options. Each default is the experiment that the README reports."""
    parser = argparse.ArgumentParser(
        prog="python -m metacurv.experiment", description=DESCRIPTION, allow_abbrev=False
    )
    _add_task(parser.add_argument_group("task").add_argument)
    _add_optimizers(parser.add_argument_group("optimizers"))
    _add_running(parser.add_argument_group("running").add_argument)
    return parser


def _add_task(add: Callable[..., Any]) -> None:
    count: dict[str, Any] = {"type": whole(1), "metavar": "N"}
    layers = " ".join(map(str, DEFAULTS.hidden))
    add(
        "--hidden",
        **count,
        nargs="+",
        default=list(DEFAULTS.hidden),
        help=f"widths of the hidden layers (default: {layers})",
    )
    add(
        "--activation",
        choices=sorted(ACTIVATIONS),
        default=DEFAULTS.activation,
        help="between the layers (default: %(default)s)",
    )
    add(
        "--batch-size",
        **count,
        default=DEFAULTS.batch_size,
        help="training examples a step (default: %(default)s)",
    )
    add("--steps", **count, help=f"training steps of each run (default: {_default('steps')})")
    add(
        "--seeds",
        **count,
        help="how many seeds; each sets initial weights, batches and probes, and intervals need "
        f"two (default: {_default('seeds')})",
    )
    add(
        "--num-samples",
        type=whole(N_CLASSES),
        metavar="N",
        default=DEFAULTS.num_samples,
        help="mnist1d examples to generate, four fifths for training (default: %(default)s)",
    )
    add(
        "--data-seed",
        type=whole(0, most=2**32 - 1),
        metavar="N",
        default=DEFAULTS.data_seed,
        help="seed of mnist1d's generator (default: %(default)s)",
    )


def _add_optimizers(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--lr",
        type=number(above=0),
        default=DEFAULTS.lr,
        help="learning rate of Adam, which the directional rule does not use (default: %(default)s)",
    )
    alphas = group.add_mutually_exclusive_group()
    alphas.add_argument(
        "--alpha",
        type=number(least=0),
        nargs="+",
        default=list(DEFAULTS.alphas),
        help="alpha of lr / (1 + alpha * trace), one or several "
        f"(default: {' '.join(map(str, DEFAULTS.alphas))})",
    )
    alphas.add_argument(
        "--alpha-sweep",
        action="store_const",
        const=list(SWEEP),
        dest="alpha",
        help=f"the same as --alpha {' '.join(map(str, SWEEP))}; Adam is trained once",
    )
    group.add_argument(
        "--no-directional",
        action="store_false",
        dest="directional",
        help="leave the directional rule out",
    )
    group.add_argument(
        "--update-freq",
        type=whole(1),
        metavar="N",
        default=DEFAULTS.update_freq,
        help="steps from one curvature reading to the next (default: %(default)s)",
    )
    group.add_argument(
        "--n-hutchinson-samples",
        type=whole(1),
        metavar="N",
        default=DEFAULTS.n_hutchinson_samples,
        help="random probes of each reading (default: %(default)s)",
    )
    group.add_argument(
        "--backend",
        choices=("auto", "native", "reference"),
        default=DEFAULTS.backend,
        help="compiled kernels, their PyTorch twins, or whichever is there (default: %(default)s)",
    )


def _add_running(add: Callable[..., Any]) -> None:
    quick = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in QUICK.items())
    add("--quick", action="store_true", help=f"{quick}, each unless given: about a minute")
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="run folder (default: runs/mnist1d-HASH, the hash of the options that change numbers)",
    )
    add(
        "--redraw",
        type=Path,
        metavar="FOLDER",
        help="train nothing: write the report, the summary and the picture in FOLDER anew, from its config.json and "
        "metrics.csv; other options are not looked at",
    )
    add("--fresh", action="store_true", help="discard the results in the run folder and start anew")
    add(
        "--eval-every",
        type=whole(1),
        metavar="N",
        help="steps from one evaluation to the next; not timed "
        f"(default: {_default('eval_every')})",
    )
    add(
        "--threads",
        type=whole(1),
        metavar="N",
        default=DEFAULTS.threads,
        help="torch threads; more than one does not help so small a network (default: %(default)s)",
    )
    add(
        "--checkpoint-seconds",
        type=number(least=0),
        metavar="S",
        default=5.0,
        help="least time from one checkpoint of a run to the next (default: %(default)s)",
    )
    add(
        "--no-progress",
        action="store_false",
        dest="progress",
        help="no progress bar, as when the output is not a terminal",
    )


def _default(name: str) -> str:
    usual, quick = getattr(DEFAULTS, name), QUICK[name]
    return f"{usual}" if usual == quick else f"{usual}; {quick} with --quick"


def to_config(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Config:
    """The configuration, after the checks that need more than one option or the machine."""
    n_train = int(arguments.num_samples // N_CLASSES * N_CLASSES * TRAIN_FRACTION)
    if arguments.batch_size > n_train:
        parser.error(
            f"argument --batch-size: must be at most {n_train}, the number of training examples, "
            f"got {arguments.batch_size}"
        )
    if len(set(arguments.alpha)) < len(arguments.alpha):
        parser.error(f"argument --alpha: each value may come once, got {arguments.alpha}")
    if arguments.backend == "native" and not metacurv.native_available():
        parser.error("argument --backend: 'native' needs compiled kernels, and none are built here")
    fallback = QUICK if arguments.quick else {name: getattr(DEFAULTS, name) for name in QUICK}
    given = {name: getattr(arguments, name) for name in QUICK}
    return Config(
        hidden=tuple(arguments.hidden),
        activation=arguments.activation,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        alphas=tuple(arguments.alpha),
        directional=arguments.directional,
        update_freq=arguments.update_freq,
        n_hutchinson_samples=arguments.n_hutchinson_samples,
        threads=arguments.threads,
        backend=arguments.backend,
        num_samples=arguments.num_samples,
        data_seed=arguments.data_seed,
        quick=arguments.quick,
        **{name: fallback[name] if value is None else value for name, value in given.items()},
    )
