"""u . G u and u . H u against dense matrices in float64; bad input; and nothing of the user's is left changed."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint as torch_checkpoint

from metacurv import NotTwiceDifferentiableError
from metacurv.estimators.directional_curvature import directional_curvature
from tests.helpers import assert_same
from tests.problems.model_problems import PlainNorm
from tests.problems.modules import Checkpointed, TiedEmbedding, perceptron_around
from tests.problems.once_differentiable import OnceCube
from tests.problems.problem import Problem, func_hessian, rand

# torch 2.10 has a function without forward mode in them.
CHECKPOINTS_HAVE_FORWARD_MODE = not hasattr(torch_checkpoint, "_NoopSaveInputs")
METHODS = {"forward_mode": 1e-11, "finite_difference": 1e-7}


class Attention(nn.Module):
    def __init__(self, *, math: bool):
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.out = nn.Linear(4, 3)
        self.math = math

    def forward(self, x):
        q, k, v = self.qkv(x).view(2, 5, 3, 2, 2).permute(2, 0, 3, 1, 4)
        with sdpa_kernel(SDPBackend.MATH if self.math else SDPBackend.FLASH_ATTENTION):
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(2, 5, 4)).flatten(0, 1)


def conv() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )
    model[0].bias.requires_grad_(False)
    return model


# Model, inputs, and where torch.func's second derivatives are wrong or missing a twin.
NETS: dict[str, Callable[[], tuple[nn.Module, Tensor, nn.Module | None]]] = {
    "relu": lambda: (perceptron_around(nn.ReLU()), rand(10, 4), None),
    "tanh": lambda: (perceptron_around(nn.Tanh()), rand(10, 4), None),
    "conv": lambda: (conv(), rand(10, 1, 6, 6), None),
    "attention": lambda: (Attention(math=True), rand(2, 5, 4), None),
    "layer norm": lambda: (
        perceptron_around(nn.LayerNorm(5)),
        rand(10, 4),
        perceptron_around(PlainNorm(5, dim=-1)),
    ),
    "batch norm in train mode": lambda: (
        perceptron_around(nn.BatchNorm1d(5)),
        rand(10, 4),
        perceptron_around(PlainNorm(5, dim=0)),
    ),
    "batch norm in eval mode": lambda: (
        perceptron_around(nn.BatchNorm1d(5)).eval(),
        rand(10, 4),
        None,
    ),
    "tied embedding": lambda: (TiedEmbedding(3), torch.arange(10) % 3, None),
}
CLASSES = torch.arange(10) % 3
LOSSES: dict[str, tuple[Callable[[Any, Any], Tensor], Tensor]] = {
    "cross-entropy": (nn.CrossEntropyLoss(label_smoothing=0.1), CLASSES),
    "squared error": (F.mse_loss, torch.linspace(-1, 1, 30, dtype=torch.float64).view(10, 3)),
    "binary": (
        F.binary_cross_entropy_with_logits,
        (torch.arange(30).view(10, 3) % 2).to(torch.float64),
    ),
    "indefinite": (lambda z, y: (z**3).sum() - (z[:, 0] * z[:, 1]).tanh().mean(), CLASSES),
    "linear": (lambda z, y: z[:, 1].sum(), CLASSES),
}


def make(name: str) -> tuple[nn.Module, Tensor, nn.Module]:
    model, inputs, twin = NETS[name]()
    if twin is not None:
        twin.double().load_state_dict(model.double().state_dict(), strict=False)
    return model.double(), inputs, twin or copy.deepcopy(model)


def direction_for(model: nn.Module) -> list[Tensor]:
    return [torch.randn_like(p) for p in model.parameters() if p.requires_grad]


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def dense(kind: str, twin: nn.Module, loss_fn, inputs, targets) -> Tensor:
    """G or H in all parameters that require a gradient, [n, n]."""
    params = {n: p.detach().requires_grad_(p.requires_grad) for n, p in twin.named_parameters()}
    problem = Problem(params, lambda p: loss_fn(functional_call(twin, dict(p), (inputs,)), targets))
    if kind == "hessian":
        return func_hessian(problem)
    live = {name: p.detach() for name, p in problem.live.items()}
    jacobians = jacrev(lambda p: functional_call(twin, dict(p), (inputs,)).flatten())(live)
    jacobian = torch.cat([j.flatten(1) for j in jacobians.values()], dim=1)
    output = twin(inputs).detach()
    at_output = Problem(
        {"z": output.flatten().requires_grad_()},
        lambda p: loss_fn(p["z"].view(output.shape), targets),
    )
    return jacobian.t() @ func_hessian(at_output) @ jacobian


def check(kind, name, loss, tolerance, **options):
    model, inputs, twin = make(name)
    loss_fn, targets = LOSSES[loss]
    u = direction_for(model)
    matrix = dense(kind, twin, loss_fn, inputs, targets)
    value = directional_curvature(model, loss_fn, inputs, targets, u, kind=kind, **options)
    assert isinstance(value, float)
    scale = float(matrix.norm()) * float(flat(u).square().sum())
    assert abs(value - float(flat(u) @ matrix @ flat(u))) <= tolerance * scale


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NETS)
def test_ggn(name, loss, method):
    check("ggn", name, loss, METHODS[method], method=method)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NETS)
def test_hessian(name, loss):
    check("hessian", name, loss, 1e-11)


def fused(case: str) -> tuple[nn.Module, Tensor, nn.Module]:
    """Models without a forward-mode derivative, and the same with one."""
    if case == "attention":
        model, inputs, twin = Attention(math=False), rand(2, 5, 4), Attention(math=True)
    else:
        model, inputs = perceptron_around(Once()), rand(10, 4)
        twin = perceptron_around(Cubed())
    twin.load_state_dict(model.state_dict())
    return model.double(), inputs, twin.double()


class Once(nn.Module):
    def forward(self, x):
        return OnceCube.apply(x)


class Cubed(nn.Module):
    def forward(self, x):
        return x**3


@pytest.mark.parametrize("case", ["attention", "custom function"])
def test_without_forward_mode(case):
    model, inputs, twin = fused(case)
    u = direction_for(model)
    arguments = (inputs, CLASSES, u)
    exact = directional_curvature(twin, F.cross_entropy, *arguments, method="forward_mode")
    assert directional_curvature(model, F.cross_entropy, *arguments) == pytest.approx(
        exact, rel=1e-7
    )
    with pytest.raises(ValueError, match="forward_mode"):
        directional_curvature(model, F.cross_entropy, *arguments, method="forward_mode")
    with pytest.raises(NotTwiceDifferentiableError):
        directional_curvature(model, F.cross_entropy, *arguments, kind="hessian")


@pytest.mark.parametrize(
    "options", [{"method": method} for method in METHODS] + [{"kind": "hessian"}]
)
def test_scale_and_forms_of_the_direction(options):
    model, inputs, _ = make("conv")

    def measure(u):
        return directional_curvature(model, F.cross_entropy, inputs, CLASSES, u, **options)

    u = direction_for(model)
    value = measure(u)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert measure([2 * part for part in u]) == pytest.approx(4 * value, rel=1e-12)
    assert measure([-part for part in u]) == pytest.approx(value, rel=1e-12)
    assert measure(tuple(u)) == value
    assert measure(flat(u)) == value
    assert measure(dict(zip(names, u, strict=True))) == value
    assert measure([part.float() for part in u]) == pytest.approx(value, rel=1e-5)
    alone = [torch.zeros_like(u[0]), *u[1:]]
    assert measure(dict(zip(names[1:], u[1:], strict=True))) == measure(alone) != value


def test_step_of_the_caller():
    """(w x)^2 for w = 1, x = 1: z = w is linear, so that any step will do; z = w^3 is not."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    model.weight.data.fill_(1.0)
    one = torch.ones(1, 1, dtype=torch.float64)

    def measure(step, power):
        return directional_curvature(
            nn.Sequential(model, Cubed()) if power == 3 else model,
            lambda z, _: z.square().sum(),
            one,
            None,
            [one],
            method="finite_difference",
            step=step,
        )

    assert measure(0.5, 1) == pytest.approx(2, rel=1e-12)
    # ((1 + h)^3 - (1 - h)^3) / 2h = 3 + h^2
    assert measure(0.5, 3) == pytest.approx(2 * 3.25**2, rel=1e-12)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-3), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("method", METHODS)
def test_lower_precision(method, dtype, bound):
    model, inputs, _ = make("tanh")
    u = direction_for(model)
    exact = directional_curvature(model, F.cross_entropy, inputs, CLASSES, u)
    value = directional_curvature(
        model.to(dtype), F.cross_entropy, inputs.to(dtype), CLASSES, u, method=method
    )
    assert value == pytest.approx(exact, rel=bound)


@pytest.mark.parametrize(
    "options", [{"method": method} for method in METHODS] + [{"kind": "hessian"}]
)
def test_dropout_has_one_mask(options):
    """In train mode, for the random numbers that the next call of the model would see."""
    model, inputs, _ = make("tanh")
    model.insert(1, nn.Dropout(0.5))
    torch.manual_seed(5)
    mask = F.dropout(torch.ones(10, 5, dtype=torch.float64), 0.5)

    class Masked(nn.Module):
        def forward(self, x):
            return x * mask

    u = direction_for(make("tanh")[0])
    torch.manual_seed(5)
    value = directional_curvature(model, F.cross_entropy, inputs, CLASSES, u, **options)
    model[1] = Masked()
    exact = directional_curvature(
        model, F.cross_entropy, inputs, CLASSES, u, kind=options.get("kind", "ggn")
    )
    assert value == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_a_model_and_a_loss_that_turn_autocast_off(kind):
    """Backward passes take the dtypes of the forward pass, whatever region the caller is in."""

    class Off(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                return self.model(x)

    def loss_fn(output, _):
        with torch.autocast("cpu", enabled=False):
            return (output @ output.t()).tanh().sum()

    model, inputs, _ = make("tanh")
    arguments = (Off(model.float()), loss_fn, inputs.float(), None, direction_for(model))
    plain = directional_curvature(*arguments, kind=kind)
    with torch.autocast("cpu", torch.bfloat16):
        assert directional_curvature(*arguments, kind=kind) == plain


@pytest.mark.parametrize(
    "options", [{"method": method} for method in METHODS] + [{"kind": "hessian"}]
)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_nothing_changes(options, mode):
    model, inputs, _ = make("batch norm in train mode")
    model[1] = Checkpointed(model[1])
    model.insert(3, nn.Dropout(0.5))
    model[0].weight.grad = rand(5, 4)
    model[0].bias.register_hook(lambda _: 1 / 0)
    u = direction_for(model)

    def everything():
        return {
            "parameters": [(id(p), p._version, p.detach().clone()) for p in model.parameters()],
            "flags": [(p.requires_grad, p.is_leaf) for p in model.parameters()],
            "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            "buffers": copy.deepcopy(dict(model.named_buffers())),
            "modes": [module.training for module in model.modules()],
            "random": torch.get_rng_state(),
            "direction": [part.clone() for part in u],
        }

    before = everything()
    if options.get("method") == "forward_mode" and not CHECKPOINTS_HAVE_FORWARD_MODE:
        with pytest.raises(ValueError, match="operations that have forward mode"):
            directional_curvature(model, F.cross_entropy, inputs, CLASSES, u, **options)
        return
    plain = directional_curvature(model, F.cross_entropy, inputs, CLASSES, u, **options)
    assert_same(everything(), before)
    with mode():
        assert directional_curvature(model, F.cross_entropy, inputs, CLASSES, u, **options) == plain
    assert_same(everything(), before)


def test_several_inputs_and_a_model_without_one_tensor():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 3).double()

        def forward(self, x, scale, shape="dict"):
            z = self.lin(x) * scale
            return {"z": z} if shape == "dict" else z

    model, x = Several(), rand(10, 4)
    u = direction_for(model)
    ggn = directional_curvature(model, F.cross_entropy, (x, 2.0, "tensor"), CLASSES, u)
    named = {"x": x, "scale": 2.0}

    def loss_fn(output, targets):
        return F.cross_entropy(output["z"], targets)

    hessian = directional_curvature(model, loss_fn, named, CLASSES, u, kind="hessian")
    assert hessian == pytest.approx(ggn, rel=1e-12)  # a linear model
    with pytest.raises(
        TypeError, match=r"kind='ggn' needs a model whose output is one .* got dict"
    ):
        directional_curvature(model, loss_fn, named, CLASSES, u)


def test_a_direction_that_the_loss_does_not_use():
    model, inputs, _ = make("tanh")
    model.register_parameter("unused", nn.Parameter(rand(2)))
    for options in ({}, {"method": "finite_difference"}, {"kind": "hessian"}):
        arguments = (model, F.cross_entropy, inputs, CLASSES, {"unused": torch.ones(2)})
        assert directional_curvature(*arguments, **options) == 0


def two_parameters() -> nn.Module:
    model = nn.Linear(4, 3).double()
    model.register_parameter("frozen", nn.Parameter(rand(2), requires_grad=False))
    return model


W, B = torch.ones(3, 4), torch.ones(3)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "model": ({"model": lambda x: x}, TypeError, "model must be a torch.nn.Module, got function"),
    "loss_fn": ({"loss_fn": 3}, TypeError, "loss_fn must be callable, got int 3"),
    "kind": ({"kind": "fisher"}, ValueError, "kind must be 'ggn' or 'hessian', got str 'fisher'"),
    "kind of another type": ({"kind": ["ggn"]}, ValueError, "kind must be"),
    "method": ({"method": "fast"}, ValueError, "method must be one of auto, forward_mode, "),
    "method for hessian": (
        {"kind": "hessian", "method": "forward_mode"},
        ValueError,
        "method must be one of auto for kind='hessian', got str 'forward_mode'",
    ),
    "step 0": ({"step": 0}, ValueError, "step must be > 0, got 0"),
    "step": ({"step": "1"}, TypeError, "step must be a finite number >= 0, got str '1'"),
    "no parameters": ({"model": nn.ReLU()}, ValueError, "must hold at least one parameter"),
    "a set": ({"direction": {1}}, TypeError, "direction must be a list or tuple .* got set {1}"),
    "a generator": ({"direction": iter([W, B])}, TypeError, "direction must be a list or tuple"),
    "too few": ({"direction": [W]}, ValueError, "for each of the model's 2 parameters .*, got 1"),
    "no tensor": (
        {"direction": [W, 1.0]},
        TypeError,
        r"direction\[1\] must be a Tensor, got float",
    ),
    "integers": (
        {"direction": [W, B.int()]},
        TypeError,
        r"direction\[1\] must be float32, .*int32",
    ),
    "sparse": ({"direction": [W.to_sparse(), B]}, TypeError, r"direction\[0\] must be a dense"),
    "shape": (
        {"direction": [W.t(), B]},
        ValueError,
        r"direction\[0\] must have the shape \(3, 4\) of parameter 'weight', got \(4, 3\)",
    ),
    "named shape": (
        {"direction": {"bias": W}},
        ValueError,
        r"direction\['bias'\] must have the sh",
    ),
    "unknown name": (
        {"direction": {"wieght": W}},
        ValueError,
        "direction must name parameters .* got 'wieght'; they are 'weight', 'bias'",
    ),
    "frozen name": (
        {"direction": {"frozen": B[:2]}},
        ValueError,
        "require a gradient, got 'frozen'",
    ),
    "device": ({"direction": [W.to("meta"), B]}, ValueError, "must be on device cpu .*, got meta"),
    "nan": ({"direction": [W * torch.nan, B]}, ValueError, r"direction\[0\] must be finite in "),
    "flat size": ({"direction": W.flatten()}, ValueError, r"the model's 15 parameters .*\(12,\)"),
    "flat shape": ({"direction": torch.ones(3, 5)}, ValueError, r"must be flat.*\(3, 5\)"),
    "flat dtype": ({"direction": torch.ones(15).int()}, TypeError, "direction must be float32"),
    "flat nan": (
        {"direction": torch.full((15,), torch.nan)},
        ValueError,
        "direction must be finite",
    ),
    "zeros": ({"direction": torch.zeros(15)}, ValueError, "direction must not be all zeros"),
    "empty": ({"direction": {}}, ValueError, "direction must not be all zeros"),
    "loss": ({"loss_fn": lambda z, y: z}, ValueError, "loss must be a scalar"),
    "nan loss": ({"loss_fn": lambda z, y: z.sum() * torch.nan}, ValueError, "loss must be finite"),
    "constant loss": (
        {"loss_fn": lambda z, y: z.detach().sum()},
        ValueError,
        "loss must carry a g",
    ),
    "inputs that do not fit": (
        {"model": nn.Sequential(two_parameters(), nn.Hardtanh()), "inputs": torch.ones(1, 5)},
        RuntimeError,
        "mat1 and mat2",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    changes, error, message = BAD[name]
    arguments = {
        "model": two_parameters(),
        "loss_fn": F.cross_entropy,
        "inputs": rand(10, 4),
        "targets": CLASSES,
        "direction": [W, B],
        **changes,
    }
    with pytest.raises(error, match=message):
        directional_curvature(**arguments)


def test_an_output_of_whole_numbers():
    class Labels(nn.Linear):
        def forward(self, x):
            return super().forward(x).argmax(1)

    with pytest.raises(TypeError, match=r"one dense real tensor, got a torch\.int64 one"):
        directional_curvature(Labels(4, 3), F.cross_entropy, torch.ones(2, 4), None, [W, B])


def test_a_loss_that_is_differentiable_once():
    arguments = (two_parameters(), lambda z, _: OnceCube.apply(z).sum(), rand(10, 4), None, [W, B])
    with pytest.raises(NotTwiceDifferentiableError, match="once_differentiable"):
        directional_curvature(*arguments)


class Aliased(nn.Module):
    """Reads its first weight from a list of its own, where nothing put in the module's place is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.held = [self.first.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(x, self.held[0], self.first.bias).tanh())


@pytest.mark.parametrize("cached", [False, True], ids=["alias", "parametrize.cached"])
def test_a_weight_that_is_read_elsewhere(cached):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = Aliased().double()
        x = rand(10, 4)
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    plain = copy.deepcopy(model)

    def outputs(h: float) -> Tensor:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, p in moved.named_parameters():
                p.add_(direction[name], alpha=h)
        return moved(x).detach()

    tangent = (outputs(1e-5) - outputs(-1e-5)) / 2e-5
    z = model(x).detach().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(z, CLASSES), z, create_graph=True)
    (h,) = torch.autograd.grad((g * tangent).sum(), z)
    expected = float((h * tangent).sum())
    if cached:
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        model[0].load_state_dict(plain.first.state_dict())
        model[2].load_state_dict(plain.last.state_dict())
        torch.nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Identity())
        direction = {
            "0.parametrizations.weight.original": direction["first.weight"],
            "0.bias": direction["first.bias"],
            "2.weight": direction["last.weight"],
            "2.bias": direction["last.bias"],
        }
    context = torch.nn.utils.parametrize.cached() if cached else contextlib.nullcontext()
    with context:
        if cached:
            model(x)  # the cache now holds what the true parameter gave
        found = directional_curvature(model, F.cross_entropy, x, CLASSES, direction)
        assert found == pytest.approx(expected, rel=1e-6)
        for method in METHODS:
            with pytest.raises(ValueError, match=r"reads .* elsewhere.*method='auto'"):
                directional_curvature(model, F.cross_entropy, x, CLASSES, direction, method=method)
