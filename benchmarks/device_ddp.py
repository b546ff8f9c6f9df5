"""Training steps on two devices with DistributedDataParallel for on_device.py: NCCL on CUDA, gloo on the CPU."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import torch
from torch import distributed, nn
from torch.multiprocessing import spawn

from benchmarks.device_case import ROUNDS, Outcome, outcome
from benchmarks.device_steps import RULES, Training

RANKS = 2


def why_not(device: str) -> str:
    """Why there is nothing to measure; "" where there is."""
    if device == "cuda" and torch.cuda.device_count() < RANKS:
        return f"DistributedDataParallel was not measured: {torch.cuda.device_count()} GPU(s)"
    return ""


def ddp_outcomes(device: str, width: int, steps: int) -> list[Outcome]:
    """Of each rule, on two ranks with batches of their own; "agree": parameters are the same on both."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (device, width, steps, folder), nprocs=RANKS)
        return [Outcome(**each) for each in json.loads((Path(folder) / "found.json").read_text())]


def _rank(rank: int, device: str, width: int, steps: int, folder: str) -> None:
    is_cuda = device == "cuda"
    if is_cuda:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if is_cuda else "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=RANKS,
    )

    def parallel(model: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(model, device_ids=[rank] if is_cuda else None)

    found = []
    for rule in RULES:
        ours, other = (
            Training(device, width, each, parallel=parallel, seed=1 + rank) for each in (rule, None)
        )
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for training, taken in zip((ours, other), times, strict=True):
                taken.append(1e6 * _seconds(training, steps, is_cuda=is_cuda))
        agree = _same_everywhere(ours.model) and ours.is_finite()  # the first is for all ranks
        found.append(outcome(f"{steps} steps of Adam on 2 ranks, {rule} rule", *times, agree))
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps([asdict(each) for each in found]))
    distributed.barrier()
    distributed.destroy_process_group()


def _seconds(training: Training, steps: int, *, is_cuda: bool) -> float:
    training.step()
    distributed.barrier()
    if is_cuda:
        torch.cuda.synchronize()
    start = perf_counter()
    for _ in range(steps):
        training.step()
    if is_cuda:
        torch.cuda.synchronize()
    return perf_counter() - start


def _same_everywhere(model: nn.Module) -> bool:
    own = nn.utils.parameters_to_vector(model.parameters()).detach()
    first = own.clone()
    distributed.broadcast(first, 0)
    differs = (own != first).any().to(torch.int32)
    distributed.all_reduce(differs)
    return int(differs) == 0
