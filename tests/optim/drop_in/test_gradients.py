"""Sparse gradients, and second derivatives that do not exist, or in another layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metacurv import MetaCurvatureLR, NotTwiceDifferentiableError
from tests.helpers import assert_same
from tests.problems.once_differentiable import OnceDifferentiable

from .reciprocal_training import (
    curvature_state,
    fresh_batch,
    leaf,
    loss_of,
    lrs,
    mlp,
    train_on_fresh,
    weights,
)

ONCE_WORDS = r"once.differentiable|differentiate.twice"
ONCE = {
    "inside": lambda w: OnceDifferentiable.apply(w).square().sum(),  # w^4
    "at the end": lambda w: OnceDifferentiable.apply(w).sum(),  # w^2
}


class Attention(nn.Module):
    """Attention over 4 tokens, then classes."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(1, 12)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.unsqueeze(-1)).unsqueeze(1).chunk(3, dim=-1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1).mean(1))


def check(error: NotTwiceDifferentiableError, cause: str) -> None:
    """Which call, why, what to do instead; the original chained."""
    text = str(error)
    assert "Hessian-vector product" in text or "gradient of loss with create_graph=True" in text
    assert cause in text
    assert "second derivatives" in text
    for advice in ("uncompiled model", "sdpa_kernel", "SDPBackend.MATH"):
        assert advice in text
    assert isinstance(error.__cause__, RuntimeError)
    assert cause in str(error.__cause__)
    assert isinstance(error, RuntimeError)


@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_once_differentiable_function(name: str, backend: str) -> None:
    """Must not be read as "no curvature": the traces are 12 (1 + 4) = 60 and 4."""
    w = leaf(1.0, 2.0)
    opt = MetaCurvatureLR(torch.optim.SGD([w], lr=0.1), backend=backend)
    before = curvature_state(opt)
    loss = ONCE[name](w)
    with pytest.raises(NotTwiceDifferentiableError, match=ONCE_WORDS):
        opt.update_curvature(loss)
    assert_same(curvature_state(opt), before)
    assert w.grad is None
    loss.backward()  # the graph is still there, and training can go on without curvature
    with pytest.warns(UserWarning, match="without a curvature reading"):
        opt.step()
    assert w.tolist() != [1.0, 2.0]


def test_flash_attention_and_the_advice() -> None:
    """The CPU's flash attention has no second derivative; under the advised context it works."""
    torch.manual_seed(0)
    model = Attention()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(NotTwiceDifferentiableError) as e:
        opt.update_curvature(loss_of(model))
    check(e.value, "scaled_dot_product_flash_attention_for_cpu")
    with sdpa_kernel(SDPBackend.MATH):
        assert opt.update_curvature(loss_of(model))
    train_on_fresh(model, opt, 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_model() -> None:
    """Through AOTAutograd, which has no double backward; the uncompiled model shares its weights
    and works.
    """
    model = mlp()
    torch._dynamo.reset()  # else what other tests compiled decides which of two messages comes
    compiled = torch.compile(model, backend="aot_eager")
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1))
    x, y = fresh_batch(0)
    with pytest.raises(NotTwiceDifferentiableError) as caught:
        opt.update_curvature(nn.functional.cross_entropy(compiled(x), y))
    check(caught.value, "does not currently support double backward")
    assert opt.update_curvature(nn.functional.cross_entropy(model(x), y))


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_in_the_seeds_loop() -> None:
    """step raises, nothing has changed, and no graph is left in .grad."""
    torch.manual_seed(0)
    model = Attention()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        loss_of(model).backward(create_graph=True)
    before = weights(model)
    with pytest.raises(NotTwiceDifferentiableError) as caught:
        opt.step()
    check(caught.value, "scaled_dot_product_flash_attention_for_cpu")
    assert_same(weights(model), before)
    assert lrs(opt) == [0.1]
    assert all(p.grad is not None and p.grad.grad_fn is None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_once_differentiable_in_the_seeds_loop() -> None:
    """The error node is in the graph of .grad, and must not be read as "no curvature"."""
    w = leaf(1.0, 2.0)
    opt = MetaCurvatureLR(torch.optim.SGD([w], lr=0.1))
    ONCE["inside"](w).backward(create_graph=True)
    assert w.grad is not None
    assert w.grad.requires_grad
    with pytest.raises(NotTwiceDifferentiableError, match=ONCE_WORDS):
        opt.step()
    assert w.tolist() == [1.0, 2.0]
    assert w.grad.grad_fn is None


def test_a_freed_graph_is_another_error() -> None:
    """The commonest slip, update_curvature after backward, gets its own words."""
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1))
    loss = loss_of(model)
    loss.backward()
    before = curvature_state(opt)
    with pytest.raises(ValueError, match=r"before loss\.backward\(\)") as caught:
        opt.update_curvature(loss)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert_same(curvature_state(opt), before)
    assert opt.update_curvature(loss_of(model))


def embedding_model(sparse: bool) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(6, 4, sparse=sparse), nn.Linear(4, 1)).double()


def embedding_loss(model: nn.Module) -> Tensor:
    return model(torch.tensor([1, 2, 2, 5])).tanh().square().mean()


@pytest.mark.parametrize("seeds_loop", [False, True], ids=["update_curvature", "create_graph"])
@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_sparse_gradients_give_the_reading_and_the_step_of_dense_ones(seeds_loop: bool) -> None:
    """nn.Embedding(sparse=True): its parameter is dense, its gradients are not. The same Hessian
    either way.
    """
    models = {sparse: embedding_model(sparse) for sparse in (True, False)}
    opts = {}
    for sparse, model in models.items():
        opt = opts[sparse] = MetaCurvatureLR(
            torch.optim.SGD(model.parameters(), lr=0.1), alpha=0.5, update_freq=1
        )
        for _ in range(3):
            opt.zero_grad()
            loss = embedding_loss(model)
            if not seeds_loop:
                opt.update_curvature(loss)
            loss.backward(create_graph=seeds_loop)
            assert model[0].weight.grad.is_sparse is sparse
            opt.step()
    sparse_estimate, dense_estimate = (opts[sparse].last_estimate for sparse in (True, False))
    assert sparse_estimate is not None
    assert dense_estimate is not None
    assert sparse_estimate.value == pytest.approx(dense_estimate.value, rel=1e-10)
    assert sparse_estimate.per_parameter == pytest.approx(dense_estimate.per_parameter, rel=1e-10)
    for a, b in zip(weights(models[True]), weights(models[False]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_sparse_adam_as_base() -> None:
    """Out of the table of optimizers because it refuses dense gradients; with sparse ones it is a
    base like any other.
    """
    torch.manual_seed(0)
    bare_model = nn.Embedding(6, 4, sparse=True)
    torch.manual_seed(0)
    model = nn.Embedding(6, 4, sparse=True)
    bare = torch.optim.SparseAdam(bare_model.parameters(), lr=0.1)
    opt = MetaCurvatureLR(torch.optim.SparseAdam(model.parameters(), lr=0.1), alpha=0.0)
    for m, o in ((bare_model, bare), (model, opt)):
        for _ in range(3):
            o.zero_grad()
            loss = embedding_loss(m)
            if o is opt:
                opt.update_curvature(loss)
            loss.backward()
            o.step()
    assert_same(weights(model), weights(bare_model))
