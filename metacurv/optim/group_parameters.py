"""The parameters of an optimizer's groups: their order, which numbers them, and a check that a model owns some of them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import Optimizer


def named_parameters(optimizer: Optimizer) -> list[tuple[str, Tensor]]:
    """Returns all parameters in ``param_groups`` order, which is their numbering.

    Names are those the base optimizer was given, with the group's index in front where two groups share one; else positions.
    """
    named: list[tuple[str, Tensor]] = []
    for group in optimizer.param_groups:
        names = group.get("param_names") or [
            str(len(named) + i) for i in range(len(group["params"]))
        ]
        named.extend(zip(names, group["params"], strict=True))
    if len({name for name, _ in named}) == len(named):
        return named
    groups = [index for index, group in enumerate(optimizer.param_groups) for _ in group["params"]]
    return [
        (f"{group}.{name}", tensor) for group, (name, tensor) in zip(groups, named, strict=True)
    ]


def check_model_has_some(model: nn.Module, stepped: Iterable[Tensor]) -> None:
    """Raises ValueError unless ``model`` has one of the parameters that the optimizer steps."""
    wanted = {id(parameter) for parameter in stepped}
    if not any(id(parameter) in wanted for parameter in model.parameters()):
        raise ValueError(
            f"model must have parameters that the optimizer steps, got a {type(model).__name__} with none of them"
        )
