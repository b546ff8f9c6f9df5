"""What a trace of a workload is, in float64 and without metacurv, and how much one parameter-space probe scatters about it.

Found once a machine and then kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from benchmarks.curvature_workloads import SEED, TRANSFORMER, Workload
from benchmarks.kept import kept

Kind = Literal["hessian", "ggn"]
Params = dict[str, Tensor]

CHUNK = 128  # unit vectors or probes at a time
PROBES = 1024
DRAWS = 400


@dataclass(frozen=True)
class Truth:
    """``value`` with its standard error, 0 where it is exact; ``probe_deviation``: standard deviation of v . A v for one
    Rademacher probe v, over ``value``."""

    value: float
    stderr: float
    probe_deviation: float


@cache
def truth(workload: Workload, kind: Kind) -> Truth:
    what = f"truth of {kind}, {PROBES} probes, {DRAWS} draws"
    return Truth(**kept(what, workload, lambda: asdict(find_truth(workload, kind))))


def find_truth(workload: Workload, kind: Kind) -> Truth:
    double = workload.double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if kind == "hessian":
            value, stderr = exact_hessian(double), 0.0
        elif workload.family == TRANSFORMER:  # 64 x 94 columns take ten minutes
            value, stderr = sampled_ggn(double)
        else:
            value, stderr = exact_ggn(double), 0.0
        return Truth(value, stderr, probe_deviation(workload, kind) / abs(value))


def parameters(workload: Workload) -> Params:
    return {name: p.detach() for name, p in workload.model.named_parameters()}


def output_of(workload: Workload, x: Tensor) -> Callable[[Params], Tensor]:
    return lambda params: torch.func.functional_call(workload.model, params, (x,))


def dot(a: Params, b: Params) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def quadratic_form(workload: Workload, kind: Kind) -> Callable[[Params], Tensor]:
    """v -> v . A v: forward over reverse for the Hessian, forward mode and the loss's own Hessian for the GGN."""
    params = parameters(workload)
    output = output_of(workload, workload.x)
    if kind == "hessian":
        gradient = torch.func.grad(lambda values: workload.loss(output(values), workload.y))
        return lambda v: dot(v, torch.func.jvp(gradient, (params,), (v,))[1])

    def form(v: Params) -> Tensor:
        logits, moved = torch.func.jvp(output, (params,), (v,))
        p = logits.softmax(1)
        return ((p * moved.square()).sum(1) - (p * moved).sum(1).square()).mean()

    return form


def exact_hessian(workload: Workload) -> float:
    """Sum of e_i . H e_i over the unit vectors."""
    form = quadratic_form(workload, "hessian")
    chunks = [torch.vmap(form)(vectors).sum() for vectors in _unit_vectors(parameters(workload))]
    return float(torch.stack(chunks).sum())


def _unit_vectors(params: Params) -> Iterator[Params]:
    """All of them, CHUNK at a time: name -> [CHUNK, *shape]."""
    for name, p in params.items():
        for begin in range(0, p.numel(), CHUNK):
            size = min(CHUNK, p.numel() - begin)
            vectors = {other: q.new_zeros(size, *q.shape) for other, q in params.items()}
            rows = torch.arange(size)
            vectors[name].view(size, -1)[rows, begin + rows] = 1.0
            yield vectors


def probe_deviation(workload: Workload, kind: Kind) -> float:
    """Standard deviation of v . A v over Rademacher probes v."""
    params = parameters(workload)
    form = torch.vmap(quadratic_form(workload, kind))
    chunk = CHUNK if workload.family != TRANSFORMER else CHUNK // 8
    values = [form(rademacher(params, chunk)) for _ in range(PROBES // chunk)]
    return float(torch.cat(values).double().std())


def rademacher(params: Params, k: int) -> Params:
    """name -> [k, *shape]"""
    return {
        name: torch.randint(0, 2, (k, *p.shape), dtype=p.dtype) * 2 - 1
        for name, p in params.items()
    }


def pulled_norms(workload: Workload) -> Callable[[Tensor], Tensor]:
    """e -> |J_n' S_n e_n|^2 of every sample n, with S S' = diag(p) - p p' the Hessian of cross-entropy, by per-sample
    gradients. e: like the logits -> [samples]."""
    params = parameters(workload)

    def norm(x: Tensor, e: Tensor) -> Tensor:
        logits, pull = torch.func.vjp(output_of(workload, x[None]), params)
        p = logits[0].detach().softmax(0)
        weighted = p.sqrt() * e
        (gradient,) = pull((weighted - p * weighted.sum(0))[None])
        return dot(gradient, gradient)

    return lambda e: torch.vmap(norm)(workload.x, e)


def exact_ggn(workload: Workload) -> float:
    """tr G column by column of S. For one label a sample."""
    norms = pulled_norms(workload)
    logits = workload.model(workload.x).detach()
    unit = torch.eye(logits.shape[1]).to(logits)
    return float(torch.stack([norms(e.expand_as(logits)).mean() for e in unit]).sum())


def sampled_ggn(workload: Workload) -> tuple[float, float]:
    """tr G, and its standard error, from random signs in place of unit vectors; several labels a sample are fine."""
    norms = pulled_norms(workload)
    logits = workload.model(workload.x).detach()
    draws = [
        norms(torch.randint_like(logits, 2) * 2 - 1).sum() / workload.y.numel()
        for _ in range(DRAWS)
    ]
    values = torch.stack(draws)
    return float(values.mean()), float(values.std()) / math.sqrt(DRAWS)
