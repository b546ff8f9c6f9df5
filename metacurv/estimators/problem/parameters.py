"""Turns what a user calls parameters into a checked, numbered list, and the list into layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from metacurv import _validate

Parameters = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class NumberedParameter:
    """A parameter with its name and its number in the random-number contract."""

    number: int
    name: str
    tensor: Tensor


def number_parameters(
    params: Parameters, *, of_model: bool = False, may_be_frozen: bool = False
) -> list[NumberedParameter]:
    """Numbers parameters by position, drops frozen ones and repetitions, and checks the rest.

    Args:
        params: tensors, (name, tensor) pairs as ``named_parameters()`` gives, or a mapping name -> tensor. Tensors without
            a name are called "0", "1", ... by position.
        of_model: True where they are all parameters of a model: messages name ``model``, and frozen ones may be of any kind.
        may_be_frozen: True where all of them may be frozen, and frozen ones of any kind.

    Returns:
        The parameters that require a gradient, each once, under its first position and name.

    Raises:
        TypeError: ``params`` is no such iterable; a parameter is sparse, complex or of an integer type.
        ValueError: ``params`` is empty, all frozen, on several devices, or has one name twice.
    """
    if isinstance(params, (Tensor, Module)) or not isinstance(params, Iterable):
        of = "; pass its parameters() or named_parameters()" if isinstance(params, Module) else ""
        raise TypeError(
            f"params must be an iterable of tensors or of (name, tensor) pairs, or a mapping, got "
            f"{_validate.describe(params)}{of}"
        )
    name_of_all = "model" if of_model else "params"
    entries: list[Any] = list(params.items() if isinstance(params, Mapping) else params)
    if not entries:
        raise ValueError(
            f"{name_of_all} must hold at least one parameter, got none"
            + ("" if of_model else " (or a generator that was used up)")
        )
    numbered: list[NumberedParameter] = []
    seen: set[int] = set()
    for number, entry in enumerate(entries):
        is_named = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)
        name, tensor = entry if is_named else (str(number), entry)
        # The name is made up for errors only: this runs in every measurement.
        any_kind = (of_model or may_be_frozen) and not tensor.requires_grad
        if not any_kind and not _validate.is_real_tensor(tensor):
            _validate.real_tensor(f"{name_of_all}[{name!r}]", tensor)
        if tensor.requires_grad and id(tensor) not in seen:
            seen.add(id(tensor))
            numbered.append(NumberedParameter(number, name, tensor))
    if not numbered and not may_be_frozen:
        raise ValueError(
            f"{name_of_all} must hold a parameter that requires a gradient, got {len(entries)} frozen ones"
        )
    names = [parameter.name for parameter in numbered]
    if len(set(names)) < len(names):
        raise ValueError(f"params must have distinct names, got {names}")
    _validate.same_device(
        f"{name_of_all}'s parameters" if of_model else "params",
        [parameter.tensor for parameter in numbered],
    )
    return numbered


def layers_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns the parameters' names by that of the module that owns them."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


class Layers:
    """The modules that own parameters: sums of parts that are reported beside them, with the total as the last.

    ``names``: the modules' names. ``columns``: the number of all values: parts, layers and total.
    """

    def __init__(self, parameters: Sequence[NumberedParameter]) -> None:
        index_of = {parameter.name: index for index, parameter in enumerate(parameters)}
        members = layers_of(index_of)
        self.names = list(members)
        self.columns = len(parameters) + len(members) + 1
        self._members = tuple(tuple(index_of[n] for n in owned) for owned in members.values())

    def row_with_sums(self, row: Tensor) -> list[float]:
        """Extends float64 [parts] to a list of parts, layers and total, on the host."""
        parts: list[float] = row.tolist()
        return [*parts, *(sum(parts[i] for i in layer) for layer in self._members), sum(parts)]

    def with_sums(self, samples: Tensor) -> Tensor:
        """Extends float64 [..., parts] to [..., parts + layers + 1], on the host."""
        rows = samples.cpu().flatten(0, -2)  # one product, not a batch of them
        sums = rows @ _sums_table(self._members, rows.shape[-1])
        return torch.cat([rows, sums], dim=-1).view(*samples.shape[:-1], -1)


@lru_cache(maxsize=16)
def _sums_table(members: tuple[tuple[int, ...], ...], parts: int) -> Tensor:
    """Returns float64 [parts, layers + 1], of zeros and ones, by which sums are products."""
    columns = [[float(part in layer) for part in range(parts)] for layer in members]
    return torch.tensor([*columns, [1.0] * parts], dtype=torch.float64, device="cpu").t()
