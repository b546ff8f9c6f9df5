"""The dense Hessian and Gauss-Newton matrix (GGN) of a case in float64, by torch.autograd.grad alone, one row at a time.

Not by torch.func, which in torch 2.13 gets second derivatives of layer_norm and of batch_norm in train mode wrong
(``test_truth.py`` compares the two wherever it does not). Rows are what reverse mode says: a padding token's embedding,
for instance, has no derivative there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.estimators.dense.case import Case

KINDS = ("hessian", "ggn")


@dataclass(frozen=True)
class Truth:
    """``matrices``: kind -> [P, P] in the elements of the named parameters, in order."""

    names: list[str]
    sizes: list[int]
    matrices: dict[str, Tensor]

    def trace(self, kind: str) -> float:
        return self.matrices[kind].trace().item()

    def per_parameter(self, kind: str) -> dict[str, float]:
        parts = self.matrices[kind].diagonal().split(self.sizes)
        return {name: part.sum().item() for name, part in zip(self.names, parts, strict=True)}

    def per_layer(self, kind: str) -> dict[str, float]:
        """By the module that owns the parameter; "" is the model itself."""
        layers: dict[str, float] = {}
        for name, part in self.per_parameter(kind).items():
            layer = name.rpartition(".")[0]
            layers[layer] = layers.get(layer, 0.0) + part
        return layers

    @property
    def scale(self) -> float:
        """What rounding is held against: a trace, or one of its parts, may cancel to nothing."""
        return sum(m.diagonal().abs().sum().item() for m in self.matrices.values())


def dense_truth(case: Case) -> Truth:
    """Both matrices of ``case``, checked to be symmetric."""
    live = case.live
    matrices = {"hessian": dense_hessian(case), "ggn": dense_ggn(case)}
    for matrix in matrices.values():
        tolerance = 1e-10 * max(1.0, matrix.abs().max().item())
        torch.testing.assert_close(matrix, matrix.t(), rtol=0, atol=tolerance)
    return Truth(list(live), [p.numel() for p in live.values()], matrices)


def dense_hessian(case: Case) -> Tensor:
    """[P, P]: the gradient of every element of the gradient."""
    return curvature(case.loss(), list(case.live.values()))


def dense_ggn(case: Case) -> Tensor:
    """[P, P] = J' H_out J, with H_out [M, M] the Hessian of the loss in the model's M output elements."""
    output = case.output()
    jacobian = jacobian_rows(output.flatten(), list(case.live.values()))
    return jacobian.t() @ output_hessian(case.loss_fn, output, case.targets) @ jacobian


def output_hessian(loss_fn: Callable[..., Tensor], output: Tensor, targets: Any) -> Tensor:
    """[M, M] in the elements of ``output``."""
    leaf = output.detach().clone().requires_grad_()
    return curvature(loss_fn(leaf, targets), [leaf])


def curvature(loss: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """[P, P]: second derivatives of a scalar in all elements of ``tensors``."""
    gradients = torch.autograd.grad(loss, tensors, create_graph=True, materialize_grads=True)
    return jacobian_rows(torch.cat([g.flatten() for g in gradients]), tensors)


def jacobian_rows(vector: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """[M, P] of a vector [M], row by row."""
    if not vector.requires_grad:  # constant, as the gradient of a linear loss is
        return vector.new_zeros(len(vector), sum(t.numel() for t in tensors))
    rows = []
    for element in vector:
        row = torch.autograd.grad(element, tensors, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([part.flatten() for part in row]))
    return torch.stack(rows).detach()
