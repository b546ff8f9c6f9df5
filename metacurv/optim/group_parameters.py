"""The parameters of an optimizer's groups: their order, which numbers them, and a check that a model owns some of them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import Optimizer


def all_parameters(optimizer: Optimizer) -> list[Tensor]:
    """Returns the parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def named_parameters(optimizer: Optimizer) -> list[tuple[str, Tensor]]:
    """Returns all parameters in ``param_groups`` order, which is their numbering.

    Names are those the base optimizer was given, with the group's index in front where two groups share one; else positions.
    """
    found: list[tuple[int, str, Tensor]] = []
    for index, group in enumerate(optimizer.param_groups):
        positions = range(len(found), len(found) + len(group["params"]))
        names = group.get("param_names") or map(str, positions)
        found += [(index, *pair) for pair in zip(names, group["params"], strict=True)]
    if len({name for _, name, _ in found}) == len(found):
        return [(name, tensor) for _, name, tensor in found]
    return [(f"{index}.{name}", tensor) for index, name, tensor in found]


def check_model_has_some(model: nn.Module, stepped: Iterable[Tensor]) -> None:
    """Raises ValueError unless ``model`` has one of the parameters that the optimizer steps."""
    wanted = {id(parameter) for parameter in stepped}
    if not any(id(parameter) in wanted for parameter in model.parameters()):
        raise ValueError(
            f"model must have parameters that the optimizer steps, got a {type(model).__name__} with none of them"
        )
