"""The experiment: every run in turn, resumed where a kill left it, then the reports."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from . import data, environment, results_files, storage
from .config import Config, Run
from .results import Curves
from .run_folder import RunFolder
from .training import TrainingRun, warm_up


def run(
    config: Config, folder: RunFolder, *, fresh: bool, checkpoint_seconds: float, progress: bool
) -> None:
    """Train what is missing in ``folder``, write the results there and print them.

    Raises:
        FolderError: the folder cannot be used for this configuration.
        DivergedError: a training loss is not finite.
    """
    with folder.opened(fresh=fresh), _threads(config.threads):
        missing = [entry for entry in config.runs if folder.rows(entry) is None]
        _announce(config, folder, resuming=bool(missing))
        if missing:
            _train(missing, config, folder, checkpoint_seconds, progress=progress)
        _report(config, folder, redraw=bool(missing))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _announce(config: Config, folder: RunFolder, *, resuming: bool) -> None:
    """Say what runs and where results go; note where earlier results had another environment."""
    now = environment.describe(config.threads)
    if not now["native"]:
        kernels = "the PyTorch reference (native kernels are not built)"
    elif config.backend == "reference":
        kernels = "the PyTorch reference (as asked for)"
    else:
        kernels = "native kernels"
    plural = "s" * (len(config.runs) > 1)
    print(
        f"{len(config.runs)} run{plural} of {config.steps} steps each; backend: {kernels}; results: {folder.root}",
        flush=True,
    )
    path = folder.root / "environment.json"
    first = storage.read_json(path)
    if first is None:
        storage.write_json(path, now)
        return
    changed = environment.changes(first, now)
    for name, (before, after) in changed.items():
        print(f"note: results so far were made with {name} {before}, now it is {after}")
    if changed and resuming:
        first.setdefault("resumed", []).append({"date": now["date"], "changed": changed})
        storage.write_json(path, first)


def _train(
    missing: list[Run],
    config: Config,
    folder: RunFolder,
    checkpoint_seconds: float,
    *,
    progress: bool,
) -> None:
    dataset = data.load(config.num_samples, config.data_seed)
    sizes = f"{len(dataset.x_train)} training and {len(dataset.x_test)} test examples"
    print(f"mnist1d: {sizes}, {dataset.origin}", flush=True)
    for method in config.methods:
        warm_up(Run(0, method), config, dataset)
    total = config.steps * len(config.runs)
    with tqdm(
        total=total,
        initial=total - config.steps * len(missing),
        unit=" steps",
        disable=None if progress else True,  # None: shown on a terminal only
        dynamic_ncols=True,
    ) as bar:
        for entry in missing:
            bar.set_description(f"seed {entry.seed + 1}/{config.seeds}, {entry.method.label}")
            training = TrainingRun(entry, config, dataset)
            state = folder.read_checkpoint(entry)
            if state is not None:
                training.load_state_dict(state)
                bar.update(training.step)
            saved = time.monotonic()
            while not training.done:
                before = training.step
                training.advance()
                bar.update(training.step - before)
                if time.monotonic() - saved >= checkpoint_seconds:
                    folder.write_checkpoint(entry, training.state_dict())
                    saved = time.monotonic()
            folder.finish(entry, training.rows)


def _report(config: Config, folder: RunFolder, *, redraw: bool) -> None:
    """Write the results and print them in short; a finished experiment keeps the picture it has."""
    curves = [
        Curves.from_rows(
            method, [folder.rows(Run(seed, method)) or [] for seed in range(config.seeds)]
        )
        for method in config.methods
    ]
    folder.write_metrics()
    results_files.write(folder.root, config, curves, redraw=redraw)
    results_files.show(folder.root, config, curves)
