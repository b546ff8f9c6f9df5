"""Where operations have their examples, against Jacobians: what is said to keep examples apart does, whatever the values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metacurv.estimators.activation.batch_separation import axis_of_input
from metacurv.estimators.graph.walk import walk_graph
from metacurv.estimators.problem.parameters import number_parameters
from tests.problems.problem import rand

EXAMPLES = 2
SQUARE = rand(4, 4, 4)

# One operation on x [4, 4, 4], where every axis might hold two examples in blocks, and how many of its three axes may.
OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "tanh": (torch.tanh, 3),
    "sum with a constant": (lambda x: x + SQUARE[0], 3),
    "product": (lambda x: x * SQUARE, 3),
    "product with a row": (lambda x: x * SQUARE[0, 0], 3),
    "quotient": (lambda x: x / SQUARE, 3),
    "mask": (lambda x: x.masked_fill(SQUARE[0] > 0, 0.0), 3),
    "where": (lambda x: torch.where(SQUARE > 0, x, SQUARE), 3),
    "dropout": (lambda x: F.dropout(x, 0.5), 3),
    "broadcast": (lambda x: x[:1].clone() + SQUARE, 2),
    "broadcast mean": (lambda x: x.mean(0, keepdim=True) + SQUARE, 2),
    "expand": (lambda x: x.expand(2, 4, 4, 4), 3),
    "expand an axis": (lambda x: x[:, :1].clone().expand(4, 4, 4), 2),
    "transpose": (lambda x: x.transpose(0, 2), 3),
    "permute": (lambda x: x.permute(1, 2, -3), 3),
    "merge": (lambda x: x.reshape(16, 4), 2),
    "merge the last": (lambda x: x.reshape(4, 16), 2),
    "split up": (lambda x: x.reshape(2, 2, 4, 4), 3),
    "shift axes": (lambda x: x.reshape(2, 8, 4), 2),
    "of one": (lambda x: x.reshape(4, 1, 4, 4), 3),
    "flatten": (lambda x: x.reshape(64), 1),
    "unsqueeze": (lambda x: x.unsqueeze(-2), 3),
    "squeeze": (lambda x: x[:, :1].clone().squeeze(1), 2),
    "squeeze nothing": (lambda x: x.squeeze(1), 2),
    "select": (lambda x: x[:, 1], 2),
    "slice": (lambda x: x[..., :2], 2),
    "unbind": (lambda x: x.unbind(1)[1], 2),
    "split": (lambda x: x.split(2, 1)[1], 2),
    "split by sizes": (lambda x: x.split([1, 3], 2)[1], 2),
    "cat": (lambda x: torch.cat([x, SQUARE], 1), 2),
    "stack": (lambda x: torch.stack([x, SQUARE], 1), 3),
    "cumsum": (lambda x: x.cumsum(1), 2),
    "softmax": (lambda x: x.softmax(-1), 2),
    "log softmax": (lambda x: x.log_softmax(0), 2),
    "mean": (lambda x: x.mean(1), 2),
    "mean of two": (lambda x: x.mean((0, 2)), 1),
    "mean that stays": (lambda x: x.mean(-1, keepdim=True), 2),
    "sum": (lambda x: x.sum(0), 2),
    "sum of all": (lambda x: x.sum(()), 0),
    "layer norm": (lambda x: F.layer_norm(x, (4,)), 2),
    "layer norm of two": (lambda x: F.layer_norm(x, (4, 4)), 1),
    "product of batches": (lambda x: x.bmm(SQUARE), 1),
    "product of batches from the right": (lambda x: SQUARE.bmm(x), 1),
    "convolution": (lambda x: F.conv1d(x, SQUARE[:, :, :3]), 1),
    "convolution's weight": (lambda x: F.conv1d(SQUARE, x), 0),
    "pooling": (lambda x: F.avg_pool2d(x.unsqueeze(1), 2), 1),
    "flip": (lambda x: x.flip(0), 0),
    "roll": (lambda x: x.roll(1, 0), 0),
    "index": (lambda x: x[torch.tensor([2, 3, 0, 1])], 0),
    "gather": (lambda x: x.gather(0, torch.zeros(4, 4, 4, dtype=torch.long)), 0),
}
# One operation on x [4, 4].
FLAT: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "matrix product": (lambda x: x @ SQUARE[0], 1),
    "matrix product from the right": (lambda x: SQUARE[0] @ x, 0),
    "layer": (lambda x: torch.addmm(SQUARE[0, 0], x, SQUARE[0]), 1),
    "layer's weight": (lambda x: torch.addmm(SQUARE[0, 0], SQUARE[0], x), 0),
    "transposition": (lambda x: x.t(), 2),
}
CASES = [(name, (4, 4, 4), *row) for name, row in OPERATIONS.items()]
CASES += [(name, (4, 4), *row) for name, row in FLAT.items()]


def example_of(shape: tuple[int, ...], axis: int) -> Tensor:
    """The number of the example that each entry belongs to, in blocks along the axis, flat."""
    along = torch.arange(shape[axis]) // (shape[axis] // EXAMPLES)
    return along.view(-1, *[1] * (len(shape) - axis - 1)).expand(shape).flatten()


@pytest.mark.parametrize(("name", "shape", "operation", "served"), CASES, ids=[c[0] for c in CASES])
def test_against_the_jacobian(name, shape, operation, served):
    leaf = rand(*shape).requires_grad_()
    # The operation is the last one, or stands below a view of its own making.
    z = operation(leaf)
    walk = walk_graph(z.grad_fn, number_parameters({"x": leaf}.items()))
    jacobian = torch.autograd.functional.jacobian(operation, leaf.detach())
    found = 0
    for axis, size in enumerate(z.shape):
        if size % EXAMPLES:
            continue
        node, at = 0, axis
        while at is not None and walk.inputs[node] and node not in walk.leaves:
            live = [k for k, (below, _) in enumerate(walk.inputs[node]) if below >= 0]
            at = axis_of_input(walk, node, live[0], at, EXAMPLES)
            node = walk.inputs[node][live[0]][0]
        if at is None:
            continue
        found += 1
        apart = example_of(tuple(z.shape), axis).unsqueeze(1) != example_of(shape, at)
        flat = jacobian.reshape(z.numel(), leaf.numel())
        assert not flat[apart].any(), f"axis {axis} is said to come from axis {at}"
    assert found == served
