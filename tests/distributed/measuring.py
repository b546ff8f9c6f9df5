"""One of two processes that measure models of copies and of shards, for test_measuring.py.

Called as: python -m tests.distributed.measuring RANK FOLDER
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import metacurv
from metacurv import MetaCurvatureLR
from metacurv.estimators.probes.hutchinson import trace_of_loss
from metacurv.estimators.problem.parameters import number_parameters
from tests.distributed.disagreeing import group, told
from tests.helpers import as_one_of_two_ranks
from tests.optim.directional.directional_training import batch, network

LOSS = nn.functional.cross_entropy
WAYS = ("bare", "copies", "inside", "shards", "one group")


def wrapped(way: str) -> nn.Module:
    model = network(norm=way in ("bare", "copies", "inside"), dtype=torch.float64)
    if way == "bare":
        return model
    if way == "shards":
        return fully_shard(model)
    if way == "one group":
        fully_shard([model[0], model[-1]])
        return fully_shard(model)
    copies = nn.parallel.DistributedDataParallel(model, process_group=group())
    return nn.Sequential(copies) if way == "inside" else copies


def estimated(rank: int, way: str) -> dict[str, Any]:
    """Of two batches on rank 0 and three on rank 1, together and by rank 1 alone, and the names that the model has."""
    model = wrapped(way)
    batches = [batch(10 * rank + i, torch.float64) for i in range(2 + rank)]
    options: dict[str, Any] = {"kind": "ggn", "n_samples": 3}
    together = metacurv.estimate_trace(model, LOSS, batches, **options)
    alone = None
    if rank == 1 and "copies" in way:
        alone = metacurv.estimate_trace(model, LOSS, batches, **options, process_group=False).value
    found = {
        "value": together.value,
        "method": together.method,
        "names": list(together.per_parameter) == [name for name, _ in model.named_parameters()],
        "alone": alone,
    }
    LOSS(model(batches[0][0]), batches[0][1]).backward()  # goes on as before
    return found


def one_number(rank: int, way: str) -> dict[str, Any]:
    """Curvature along one direction, on a batch of this rank's own: over both ranks, and here alone without a wrapper."""
    model, alone = wrapped(way), network(norm=way != "shards", dtype=torch.float64)
    direction = [torch.ones_like(p) for p in alone.parameters()]
    x, y = batch(rank, torch.float64)
    along = metacurv.directional_curvature
    return {
        kind: [
            along(model, LOSS, x, y, direction, kind=kind),
            along(alone, LOSS, x, y, direction, kind=kind, process_group=False),
        ]
        for kind in ("ggn", "hessian")
    }


def spectrum(rank: int, way: str) -> dict[str, Any]:
    """Eigenvalues, density and diagonal of the batches of both ranks, together and all of them here alone."""
    here = [batch(10 * rank + i, torch.float64) for i in range(2 + rank)]
    all_batches = [batch(10 * r + i, torch.float64) for r in (0, 1) for i in range(2 + r)]
    alone = network(norm=way != "shards", dtype=torch.float64)
    found: dict[str, Any] = {}
    for name, model, batches, options in (
        ("together", wrapped(way), here, {}),
        ("alone", alone, all_batches, {"process_group": False, "method": "lanczos"}),
    ):
        top = metacurv.top_eigenvalues(model, LOSS, batches, kind="ggn", k=2, rtol=1e-9, **options)
        density = metacurv.spectral_density(model, LOSS, batches, n_samples=2, steps=8, **options)
        exact = {**options, "method": "hutchinson"}
        diagonal = metacurv.diagonal(model, LOSS, batches, n_samples=3, **exact)
        ggn = {**options, "method": "auto"}
        found[name] = {
            "values": top.values.tolist(),
            "density": density.density[::100].tolist(),
            "diagonal": {n: x.sum().item() for n, x in diagonal.items()},
            "ggn": metacurv.diagonal(model, LOSS, batches, kind="ggn", **ggn).per_layer,
            "n_samples": diagonal.n_samples,
            "why": top.why,
        }
    return found


def of_losses(rank: int) -> list[dict[str, Any]]:
    """Hutchinson's estimate over both ranks, and of the same probes here alone."""
    model = network(dtype=torch.float64)
    x, y = batch(rank, torch.float64)
    together = metacurv.hessian_trace(LOSS(model(x), y), model.named_parameters(), n_samples=4)
    numbered = number_parameters(model.named_parameters())
    alone = trace_of_loss(
        LOSS(model(x), y), numbered, seed=0, first_probe=4 * rank, n_samples=4, backend="auto"
    )
    return [vars(together), vars(alone.estimate())]


def of_shards(rank: int) -> dict[str, Any]:
    """The reciprocal rule where the outermost module has parameters of its own, which are whole between the passes."""
    traces: list[float] = []
    for way in ("shards", "bare"):
        model = network(dtype=torch.float64)
        temperature = nn.Parameter(torch.ones((), dtype=torch.float64))
        if way == "shards":
            fully_shard(model)
        opt = MetaCurvatureLR(
            torch.optim.SGD([*model.parameters(), temperature], lr=0.1),
            alpha=0.1,
            model=model,
            process_group=group(),
        )
        x, y = batch(rank, torch.float64)
        opt.update_curvature(LOSS(model(x) * temperature, y))
        assert opt.last_estimate is not None
        traces.append(opt.last_estimate.value)
    return {"traces": traces, "stranger": told(lambda _: of_a_stranger())[1]}


def of_a_stranger() -> None:
    """The optimizer steps a sharded parameter that is not the model's."""
    model, other = (fully_shard(network(dtype=torch.float64)) for _ in range(2))
    stepped: list[Tensor] = [*model.parameters(), *other.parameters()]
    opt = MetaCurvatureLR(torch.optim.SGD(stepped, lr=0.1), alpha=0.1, model=model)
    x, y = batch(0, torch.float64)
    opt.update_curvature(LOSS(model(x), y))


def main(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {way: estimated(rank, way) for way in WAYS}
    for way in ("bare", "copies", "shards"):
        found[f"{way}, one number"] = one_number(rank, way)
        found[f"{way}, spectrum"] = spectrum(rank, way)
    return {**found, **of_shards(rank), "losses": of_losses(rank)}


if __name__ == "__main__":
    as_one_of_two_ranks(main)
