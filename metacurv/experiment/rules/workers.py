"""Runs in processes of one thread each; the parent alone writes results down."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from .plan import Run
from .store import Store
from .training import Record, run


def finished(runs: Sequence[Run], jobs: int) -> Iterator[tuple[Run, Record]]:
    """Runs and their records as they come, ``jobs`` at a time; in order for one job, which stays in this process."""
    if jobs == 1:
        torch.set_num_threads(1)
        for each in runs:
            yield each, _do(each)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        futures = {pool.submit(_do, each): each for each in runs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def complete(runs: Iterable[Run], store: Store, jobs: int, what: str, *, progress: bool) -> None:
    """Trains those of ``runs`` that ``store`` lacks, and keeps each as it comes. ``what``: for the progress bar."""
    todo = [each for each in runs if each not in store]
    hidden = not progress or not todo
    for each, record in tqdm(finished(todo, jobs), total=len(todo), desc=what, disable=hidden):
        store.add(each, record)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _do(each: Run) -> Record:
    return run(each.task, each.method, each.seed, steps=each.steps, user_lr=each.user_lr)
