"""v_n' H_n v_n and v_n' G_n v_n of every example, against networks in which each example has parameters of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from metacurv import ops
from metacurv.estimators.problem.data import Data
from metacurv.estimators.problem.parameters import number_parameters
from metacurv.estimators.select.measured_batch import MeasuredBatch
from metacurv.estimators.split.products import SplitProducts
from tests.estimators.dense.case import FORWARD_SEED, Case, build
from tests.estimators.dense.table import TABLE, marks_of
from tests.estimators.dense.truth import output_hessian

SEED = 11
# The Gauss-Newton matrix is the logits' there, not the output's: any whose trace is known will do as a control variate.
ENDS_AT_LOGITS = "log_softmax_in_the_model"


def measured(case: Case) -> MeasuredBatch:
    torch.manual_seed(FORWARD_SEED)
    parameters = number_parameters(case.model.named_parameters(), of_model=True)
    data = Data(case.model, case.loss_fn, case.inputs, case.targets, None, None)
    ((_, problem),) = data.each(parameters)
    return MeasuredBatch(problem, "hessian", SEED, "auto", 1 << 28)


def directions(products: SplitProducts, case: Case, probe: int) -> list[dict[str, Tensor]]:
    """The direction of each example, written out."""
    found: list[dict[str, Tensor]] = [{} for _ in range(products.rows - 1)]
    for index, (name, p) in enumerate(case.live.items()):
        if index not in products.places:
            shared = torch.empty(p.shape, dtype=p.dtype)
            ops.rademacher_([shared], seed=SEED, probe=probe, numbers=[number_of(case, name)])
            for of in found:
                of[name] = shared
            continue
        rows, shared, columns = products.direction(index, SEED, probe)
        for n, of in enumerate(found):
            if shared is None:
                of[name] = rows[n].view(p.shape)
            else:
                of[name] = (rows[n].unsqueeze(1) * shared * columns[n]).view(p.shape)
    return found


def number_of(case: Case, name: str) -> int:
    return [n for n, _ in case.model.named_parameters()].index(name)


def apart(case: Case, examples: int) -> tuple[list[dict[str, Tensor]], Tensor] | None:
    """Parameters for each example, and the output of all; None where the batch cannot be cut so."""
    copies = [
        {name: p.detach().clone().requires_grad_() for name, p in case.live.items()}
        for _ in range(examples)
    ]
    if not all(isinstance(x, Tensor) and len(x) == examples for x in case.arguments):
        return None
    outputs = [
        functional_call(
            case.model, copy, tuple(x[n : n + 1] for x in case.arguments), tie_weights=True
        )
        for n, copy in enumerate(copies)
    ]
    output = torch.cat(outputs)
    whole = case.output()
    same = output.shape == whole.shape and torch.allclose(output, whole, rtol=1e-10, atol=1e-12)
    return (copies, output) if same else None


def test_nearly_all_networks_are_compared() -> None:
    """The test below returns where there is nothing to compare with."""
    compared = 0
    for name in list(TABLE)[::5]:
        case = build(TABLE[name])
        batch = measured(case)
        if batch.unknown is None and (rows := batch.split_products().rows) > 1:
            compared += apart(case, rows - 1) is not None
    assert compared >= 0.85 * len(list(TABLE)[::5])


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in TABLE])
def test_every_example(name: str) -> None:
    case = build(TABLE[name])
    batch = measured(case)
    if batch.unknown is not None:
        return
    products = batch.split_products()
    parts, of_gauss_newton = products.sample(SEED, 5)
    assert parts.shape == (products.rows, len(case.live))
    if products.rows == 1:
        return
    found = apart(case, products.rows - 1)
    if found is None:
        return
    copies, output = found
    v = directions(products, case, 5)
    tensors = [copy[name] for copy in copies for name in case.live]
    vectors = [of[name] for of in v for name in case.live]
    gradients = torch.autograd.grad(
        case.loss_fn(output, case.targets), tensors, create_graph=True, materialize_grads=True
    )
    slope = sum((g * x).sum() for g, x in zip(gradients, vectors, strict=True))
    hv = torch.autograd.grad(slope, tensors, retain_graph=True, materialize_grads=True)
    expected = torch.stack([(h * x).sum() for h, x in zip(hv, vectors, strict=True)])
    expected = expected.view(len(copies), -1)
    scale = max(1.0, float(expected.abs().max()))
    has_own = [index in products.places for index in range(len(case.live))]
    own = parts[1:, has_own]
    torch.testing.assert_close(own, expected[:, has_own], rtol=0, atol=1e-9 * scale)
    torch.testing.assert_close(parts.sum(0), expected.sum(0), rtol=0, atol=1e-9 * scale)
    if batch.forward.edge is None or name == ENDS_AT_LOGITS:
        return
    pushed = jvp(output, tensors, vectors)
    product = output_hessian(case.loss_fn, output, case.targets) @ pushed.flatten()
    of_each = (product.view(output.shape) * pushed).reshape(len(copies), -1).sum(1)
    torch.testing.assert_close(of_gauss_newton[1:], of_each, rtol=0, atol=1e-9 * scale)


def jvp(output: Tensor, tensors: list[Tensor], vectors: list[Tensor]) -> Tensor:
    """J v, as the derivative of w . J v in w."""
    w = torch.zeros_like(output, requires_grad=True)
    pulled = torch.autograd.grad(output, tensors, w, create_graph=True, materialize_grads=True)
    slope = sum((g * x).sum() for g, x in zip(pulled, vectors, strict=True))
    if not isinstance(slope, Tensor) or not slope.requires_grad:
        return torch.zeros_like(output)
    (found,) = torch.autograd.grad(slope, [w], materialize_grads=True)
    return found
