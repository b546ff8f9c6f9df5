"""Gets the model, loss and batches that a user's function returns."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from metacurv import _validate
from metacurv.estimators.problem.model_loss import LossFunction


@dataclass(frozen=True)
class Subject:
    """A model with its loss and batches; ``name`` is MODULE:FUNCTION, from which they come."""

    name: str
    model: nn.Module
    loss_fn: LossFunction
    loader: Iterable[Any]


def load_subject(name: str, batches: int | None) -> Subject:
    """Calls the function that ``name`` names, MODULE:FUNCTION, and checks what it returns.

    ``batches``: the number of batches to take; None for all.

    Raises:
        ValueError: ``name`` is of another form, or ``batches`` is below 1.
        ImportError: there is no such module.
        AttributeError: the module has no such function.
        TypeError: the function returns something else.
    """
    module_name, colon, function_name = name.partition(":")
    if not colon or not module_name or not function_name:
        raise ValueError(f"MODULE:FUNCTION must have this form, such as mymodel:make, got {name!r}")
    if batches is not None:
        _validate.integer("--batches", batches, low=1)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0]:
            raise  # the module is there, and lacks another one
        raise ImportError(
            f"MODULE must be in the folder {here} or installed, got {module_name!r}"
        ) from error
    if not hasattr(module, function_name):
        raise AttributeError(
            f"MODULE:FUNCTION must name a function that the module has, got {name!r}"
        )
    returned = getattr(module, function_name)()
    if not isinstance(returned, tuple) or len(returned) != 3:
        got = f"a tuple of {len(returned)}" if isinstance(returned, tuple) else None
        raise TypeError(
            f"{name} must return (model, loss_fn, loader), got {got or _validate.describe(returned)}"
        )
    model, loss_fn, loader = returned
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{name} must return a torch.nn.Module first, got {_validate.describe(model)}"
        )
    _validate.loss_function(loss_fn)
    if not isinstance(loader, Iterable):
        raise TypeError(
            f"{name} must return an iterable of (inputs, targets) pairs last, got {_validate.describe(loader)}"
        )
    if batches is not None:
        loader = list(itertools.islice(loader, batches))
    elif iter(loader) is loader:
        loader = list(loader)  # each measurement goes through all of it
    return Subject(name, model, loss_fn, loader)
