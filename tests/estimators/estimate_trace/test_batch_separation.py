"""Where operations have their examples, against Jacobians: what is said to keep examples apart does, whatever the values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metacurv import estimate_trace
from metacurv.estimators.activation import examine
from metacurv.estimators.activation.batch_layout import Layout
from metacurv.estimators.activation.batch_separation import Where, where_in_input
from metacurv.estimators.graph.walk import walk_graph
from metacurv.estimators.problem.parameters import number_parameters
from tests.problems.problem import rand

EXAMPLES = 2
SQUARE = rand(4, 4, 4)

# One operation on x [4, 4, 4], and how many axes of its output may hold two examples, in blocks.
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
    "split up": (lambda x: x.reshape(2, 2, 4, 4), 4),
    "shift axes": (lambda x: x.reshape(2, 8, 4), 3),
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
    "transpose in place": (lambda x: x.clone().transpose_(0, 1), 3),
    "unsqueeze in place": (lambda x: x.clone().unsqueeze_(1), 3),
    "squeeze in place": (lambda x: x[:, :1].clone().squeeze_(1), 2),
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


def places(size: int) -> list[int]:
    """The blocks that an axis may hold two examples in: whole halves, or smaller ones by turns."""
    return [block for block in (1, 2, 4, 8, 16, 32) if size % (block * EXAMPLES) == 0]


def example_of(shape: tuple[int, ...], place: Where) -> Tensor:
    """The number of the example that each entry belongs to, flat."""
    along = torch.arange(shape[place.axis]) // place.block % EXAMPLES
    return along.view(-1, *[1] * (len(shape) - place.axis - 1)).expand(shape).flatten()


@pytest.mark.parametrize(("name", "shape", "operation", "served"), CASES, ids=[c[0] for c in CASES])
def test_against_the_jacobian(name, shape, operation, served):
    leaf = rand(*shape).requires_grad_()
    z = operation(leaf)
    walk = walk_graph(z.grad_fn, number_parameters({"x": leaf}.items()))
    jacobian = torch.autograd.functional.jacobian(operation, leaf.detach())
    found = set()
    for axis, size in enumerate(z.shape):
        for block in places(size):
            node, at = 0, Where(axis, block)
            while at is not None and node not in walk.leaves:
                # Some operations stand upon views of their own making.
                position = next(k for k, (below, _) in enumerate(walk.inputs[node]) if below >= 0)
                at = where_in_input(walk, node, position, at, EXAMPLES)
                node = walk.inputs[node][position][0]
            if at is None:
                continue
            found.add(axis)
            apart = example_of(tuple(z.shape), Where(axis, block)).unsqueeze(1) != example_of(
                shape, at
            )
            flat = jacobian.reshape(z.numel(), leaf.numel())
            assert not flat[apart].any(), (
                f"axis {axis} in blocks of {block} is said to come from {at}"
            )
    assert len(found) == served


class Sequences(nn.Module):
    """A layer of sequences [N, T, 8], and a layer upon its last place."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.out = inner, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(x)
        return self.out((found[0] if isinstance(found, tuple) else found)[:, -1])


def encoder(**options: object) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, **options)


class Attention(nn.Module):
    """Scaled dot product attention, fused, under a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        made = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return made.transpose(1, 2).flatten(2)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "encoder": encoder,
    "encoder, norms first": lambda: encoder(norm_first=True, activation="gelu"),
    "fused attention": Attention,
    "layer norm": lambda: nn.LayerNorm(8),
    "perceptron": lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh()),
}


@pytest.mark.parametrize("rows", [3, 4], ids=["sequences of 4, batch of 3", "batch of 4"])
@pytest.mark.parametrize("name", LAYERS)
def test_networks_are_examined_once(name, rows, monkeypatch):
    torch.manual_seed(0)
    model = Sequences(LAYERS[name]())
    looks, look = [], examine._examine
    monkeypatch.setattr(examine, "_examine", lambda *given: looks.append(1) or look(*given))
    examine._examined.clear()
    for seed in range(3):
        x, y = torch.randn(rows, 4, 8), torch.arange(rows) % 3
        with sdpa_kernel(
            SDPBackend.FLASH_ATTENTION if name == "fused attention" else SDPBackend.MATH
        ):
            estimate_trace(model, F.cross_entropy, x, y, kind="ggn", n_samples=1, seed=seed)
    assert len(looks) == 1


class SequenceFirst(nn.Module):
    """Attention over the first axis of [T, N, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.qk, self.v = nn.Linear(8, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.qk(x).transpose(0, 1).chunk(2, -1)
        return ((q @ k.transpose(1, 2)).softmax(2) @ self.v(x).transpose(0, 1)).transpose(0, 1)


class WithNothing(nn.Module):
    """Activations beside none of them, which a view has brought to their shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        nothing = h.unflatten(1, (2, 2))[:, :0].reshape(len(x), 0)
        return self.second(torch.cat([h, nothing], 1).relu())


def test_activations_without_elements():
    model, x, y = WithNothing(), torch.randn(6, 3), torch.arange(6) % 3
    plain = nn.Sequential(model.first, nn.ReLU(), model.second)
    found, expected = (estimate_trace(m, F.cross_entropy, x, y) for m in (model, plain))
    assert found.value == pytest.approx(expected.value, rel=1e-5)


def test_an_axis_of_the_same_length_is_not_taken_for_the_examples():
    """Sequences as long as the batch is large: the first axis fits no layer, and the second is tried too."""
    examine._examined.clear()
    x, y = torch.randn(4, 4, 8), torch.randn(4, 4, 3)
    estimate_trace(SequenceFirst(), nn.MSELoss(), x, y, kind="ggn", n_samples=1)
    (found,) = examine._examined.values()
    assert found.boundary == Layout("axis", 4, 1)
