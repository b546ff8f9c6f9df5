"""Runs in processes of one thread each; the parent alone writes results down."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from .plan import Run
from .store import Store
from .training import Record, run

Each = TypeVar("Each")


def finished(
    runs: Sequence[Each], jobs: int, do: Callable[[Each], Record]
) -> Iterator[tuple[Each, Record]]:
    """Runs and what ``do`` makes of them as it comes, ``jobs`` at a time; in order for one job, which stays in this process."""
    if jobs == 1:
        torch.set_num_threads(1)
        for each in runs:
            yield each, do(each)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        futures = {pool.submit(do, each): each for each in runs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def train(each: Run) -> Record:
    """Does one run of the comparison."""
    return run(each.task, each.method, each.seed, steps=each.steps, user_lr=each.user_lr)


def complete(
    runs: Iterable[Run],
    store: Store,
    jobs: int,
    what: str,
    *,
    progress: bool,
    do: Callable[[Run], Record] = train,
) -> None:
    """Does those of ``runs`` that ``store`` lacks, and keeps each as it comes. ``what``: for the progress bar."""
    todo = [each for each in runs if each not in store]
    hidden = not progress or not todo
    for each, record in tqdm(finished(todo, jobs, do), total=len(todo), desc=what, disable=hidden):
        store.add(each, record)


def _one_thread() -> None:
    torch.set_num_threads(1)
