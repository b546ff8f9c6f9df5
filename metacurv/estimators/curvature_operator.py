"""The Hessian or Gauss-Newton matrix of a whole model as an operator, which multiplies vectors and is never formed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from metacurv.estimators.problem.data import Kind
from metacurv.estimators.problem.model_loss import LossFunction
from metacurv.estimators.spectrum.matrix import make_matrix
from metacurv.estimators.spectrum.operator import CurvatureOperator


def curvature_operator(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any = None,
    *,
    kind: Kind = "hessian",
    max_memory: int = 1 << 30,
    backend: str = "auto",
    process_group: Any = None,
    output: Callable[[Any], Any] | None = None,
    batch_size: int | Callable[[Any], int] | None = None,
) -> CurvatureOperator:
    """Makes an operator of the Hessian or Gauss-Newton matrix (GGN) of ``loss_fn(model(inputs), targets)``.

    The matrix is taken in all P parameters of the model that require a gradient. A product with the Hessian takes a backward
    pass through the gradient's graph (Pearlmutter 1994); one with the GGN pushes the vector through the model, multiplies by
    the second derivative of the loss in the output, and pulls the product back (Schraudolph 2002). A product
    runs the model anew on all batches; a block of vectors shares that.

    Args:
        model: the model; its parameters that require a gradient are the matrix's rows.
        loss_fn: called with the model's output and the targets; returns a scalar, a mean or a sum over the examples.
        inputs: a batch or an iterable of batches, as for ``estimate_trace``, which must be the same each time. The random state
            of loaders that shuffle is put back; of an iterator that can be used once, all is kept in memory.
        targets: the second argument of ``loss_fn``; None where ``inputs`` gives it.
        kind: "hessian" or "ggn".
        max_memory: bytes for the cotangents that are held at a time by what is built on the operator.
        backend: "auto", "native" or "reference" (see ``metacurv.ops``).
        process_group: the ranks whose batches make up one matrix, as for ``estimate_trace``: all must take each product.
        output: a function that picks from the model's output what ``loss_fn`` gets, as for ``estimate_trace``.
        batch_size: the number of examples in a batch, as for ``estimate_trace``.

    Returns:
        The operator: ``operator @ v``, ``operator.shape``, ``operator.to_scipy()``.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range.

    References:
        - Pearlmutter 1994, "Fast exact multiplication by the Hessian".
        - Schraudolph 2002, "Fast curvature matrix-vector products for second-order gradient descent".

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
        >>> hessian = curvature_operator(model, torch.nn.MSELoss(), x, y)
        >>> hessian.shape, (hessian @ torch.tensor([1.0, 1.0])).tolist()
        ((2, 2), [1.0, 4.0])
    """
    return CurvatureOperator(
        make_matrix(
            model,
            loss_fn,
            inputs,
            targets,
            kind=kind,
            max_memory=max_memory,
            backend=backend,
            process_group=process_group,
            output=output,
            batch_size=batch_size,
        )
    )
