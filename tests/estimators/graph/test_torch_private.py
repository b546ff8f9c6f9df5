"""All that is private in torch and read here is listed, and is there in the torch that runs this."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.algorithms.join
import torch.nn.functional as F
from torch import Tensor, nn

import metacurv
from metacurv.estimators.graph import torch_private
from metacurv.estimators.graph.torch_private import SAVED, outputs_of, run_backward, saved

PACKAGE = Path(metacurv.__file__).parent


def graph_node() -> Any:
    return torch.ones(2, requires_grad=True).sum().grad_fn


def fully_shard_state() -> Any:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_state import FSDPState

    state = FSDPState()
    assert hasattr(FSDPModule, "_get_fsdp_state")
    return state


class Joined(torch.distributed.algorithms.join.Joinable):
    def __init__(self) -> None:
        super().__init__()

    def join_hook(self, **arguments: Any) -> Any: ...

    join_device = join_process_group = property(lambda self: None)


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def has(holder: Callable[[], Any], *names: str) -> Callable[[str], bool]:
    """One of ``names``, by default the attribute's own, is there."""
    return lambda name: any(hasattr(holder(), each) for each in names or (name,))


# An attribute that begins with an underscore and belongs to torch -> whether this torch has it.
PRIVATE: dict[str, Callable[[str], bool]] = {
    "_BatchNorm": has(lambda: nn.modules.batchnorm),
    "_C": has(lambda: torch),
    "_backward_hooks": has(lambda: torch.ones(1)),
    "_buffers": has(lambda: nn.Linear(1, 1)),
    "_current_graph_task_id": has(lambda: torch._C),
    "_foreach_add_": has(lambda: torch),
    "_foreach_copy_": has(lambda: torch),
    "_foreach_div_": has(lambda: torch),
    "_foreach_lerp_": has(lambda: torch),
    "_foreach_mul": has(lambda: torch),
    "_foreach_norm": has(lambda: torch),
    "_foreach_sub_": has(lambda: torch),
    "_forward_cls": has(lambda: Function.apply(torch.ones(1, requires_grad=True)).grad_fn),
    "_forward_hooks": has(lambda: nn.Linear(1, 1)),
    "_forward_pre_hooks": has(lambda: nn.Linear(1, 1)),
    "_fsdp_param_group": has(fully_shard_state, "_fsdp_param_group", "_fsdp_param_groups"),
    "_fsdp_param_groups": has(fully_shard_state, "_fsdp_param_group", "_fsdp_param_groups"),
    "_get_fsdp_state": has(lambda: torch.distributed.fsdp.FSDPModule),
    "_input_metadata": has(graph_node),
    "_is_view": has(lambda: torch.ones(1)),
    "_join_config": has(Joined),
    "_mp_policy": lambda name: name in inspect.getsource(type(fully_shard_state())),
    "_parameters": has(lambda: nn.Linear(1, 1)),
    "_schema": has(lambda: torch.ops.aten.add.Tensor),
    "_unsafe_preserve_version_counter": has(lambda: torch.autograd),
    "_version": has(lambda: torch.ones(1)),
    "_values": has(lambda: torch.ones(1).to_sparse()),
}
# Names of Python, and of ours that another class of ours reads.
OURS = {"_ArgumentGroup", "_getframe"}


def private_attributes() -> Iterator[str]:
    """Attributes with an underscore in front that no class or module of the same file defines."""
    for path in sorted(PACKAGE.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        own = {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        own |= {
            n.attr
            for n in nodes
            if isinstance(n, ast.Attribute)
            and isinstance(n.value, ast.Name)
            and n.value.id in ("self", "cls")
        }
        own |= {
            n.target.id
            for n in nodes
            if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
        }
        for node in nodes:
            if not isinstance(node, ast.Attribute) or node.attr in own:
                continue
            if node.attr.startswith("_") and not node.attr.startswith("__"):
                yield node.attr


def test_every_private_attribute_is_listed() -> None:
    assert set(private_attributes()) == PRIVATE.keys() | OURS


@pytest.mark.parametrize("name", PRIVATE)
def test_torch_has(name: str) -> None:
    assert PRIVATE[name](name), f"torch {torch.__version__} has no {name}"


def test_nodes_are_read_in_one_place() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path != Path(torch_private.__file__):
            text = path.read_text()
            assert "_saved_" not in text, path
            assert "_input_metadata" not in text, path


def test_what_is_read_of_a_node_is_listed() -> None:
    """Whatever the node is called: a name that is read is a name that some node has."""
    listed = {name for names in SAVED.values() for name in names.split()}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "saved":
                name = node.args[1]
                if isinstance(name, ast.Constant):
                    assert name.value in listed, f"{path}: {name.value}"


def r(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


MADE: dict[str, Callable[[], Tensor]] = {
    "AddBackward0": lambda: torch.add(r(2), r(2), alpha=2),
    "AddmmBackward0": lambda: torch.addmm(r(3), r(2, 4), r(4, 3)),
    "CatBackward0": lambda: torch.cat([r(2), r(2)]),
    "ConvolutionBackward0": lambda: F.conv2d(r(1, 2, 4, 4), r(3, 2, 3, 3)),
    "CumsumBackward0": lambda: r(2, 3).cumsum(1),
    "EmbeddingBackward0": lambda: F.embedding(torch.tensor([1]), r(3, 2)),
    "LogSoftmaxBackward0": lambda: r(2, 3).log_softmax(1),
    "MeanBackward1": lambda: r(2, 3).mean(1),
    "MmBackward0": lambda: r(2, 3) @ r(3, 2),
    "MulBackward0": lambda: r(2) * r(2),
    "NativeBatchNormBackward0": lambda: F.batch_norm(
        r(4, 2, 3), torch.zeros(2), torch.ones(2), r(2), r(2)
    ),
    "NativeGroupNormBackward0": lambda: F.group_norm(r(2, 4, 3), 2, r(4), r(4)),
    "NativeLayerNormBackward0": lambda: F.layer_norm(r(2, 3), (3,), r(3), r(3)),
    "NllLossBackward0": lambda: F.nll_loss(r(2, 3), torch.tensor([0, 1])),
    "PermuteBackward0": lambda: r(2, 3, 4).permute(2, 0, 1),
    "PreluKernelBackward0": lambda: F.prelu(r(2, 3), r(1)),
    "ReluBackward0": lambda: r(2).relu(),
    "SafeSoftmaxBackward0": lambda: torch._safe_softmax(r(2, 3), 1),
    "SelectBackward0": lambda: r(2, 3)[0],
    "SigmoidBackward0": lambda: r(2).sigmoid(),
    "SliceBackward0": lambda: r(2, 3)[:1],
    "SoftmaxBackward0": lambda: r(2, 3).softmax(1),
    "SplitBackward0": lambda: r(4).split(2)[0],
    "SplitWithSizesBackward0": lambda: r(4).split([1, 3])[0],
    "SqueezeBackward1": lambda: r(2, 1).squeeze(1),
    "StackBackward0": lambda: torch.stack([r(2), r(2)]),
    "SubBackward0": lambda: torch.sub(r(2), r(2), alpha=2),
    "SumBackward1": lambda: r(2, 3).sum(1),
    "TanhBackward0": lambda: r(2).tanh(),
    "TransposeBackward0": lambda: r(2, 3, 4).transpose(1, 2),
    "UnbindBackward0": lambda: r(2, 3).unbind(1)[0],
    "UnsafeSplitBackward0": lambda: torch.unsafe_split(r(4), 2)[0],
    "TransposeBackward1": lambda: r(2, 3, 4).clone().transpose_(1, 2),
    "SqueezeBackward4": lambda: r(2, 1).clone().squeeze_(1),
    "UnsqueezeBackward1": lambda: r(2).clone().unsqueeze_(0),
    "UnsqueezeBackward0": lambda: r(2).unsqueeze(0),
}


def test_every_node_is_made_here() -> None:
    assert SAVED.keys() - MADE.keys() == {"CudnnBatchNormBackward0"}, "which needs a GPU"
    assert MADE.keys() <= SAVED.keys()


@pytest.mark.parametrize("name", MADE)
def test_nodes_keep_what_is_read_of_them(name: str) -> None:
    result = MADE[name]()
    node: Any = result.grad_fn
    assert node.name() == name
    for attribute in SAVED[name].split():
        saved(node, attribute)
    (first, *_) = outputs_of(node)
    assert tuple(first.shape) == tuple(result.shape)
    assert first.dtype == result.dtype


def test_the_engine_and_its_public_stand_in_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    x = r(3)
    y = x.square()
    (fast,) = run_backward([y], [x], [torch.ones(3)])
    monkeypatch.setattr(torch_private, "_engine_run_backward", None)
    (public,) = run_backward([y], [x], [torch.ones(3)])
    assert fast is not None
    assert public is not None
    assert torch.equal(fast, public)
