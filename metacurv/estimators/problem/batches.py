"""The batches that a trace is measured over: a single one, or those of an iterable such as a data loader."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from metacurv import _validate


def batches(inputs: Any, targets: Any) -> Iterator[tuple[Any, Any]]:
    """Yields the one batch, or those that ``inputs`` gives. Random generators used on the way get their states back."""
    if targets is not None and isinstance(inputs, DataLoader):
        raise TypeError(
            f"targets must be left out where inputs is a DataLoader, which gives them, got {_validate.describe(targets)}"
        )
    _validate.no_data_set("inputs", inputs, "a batch or an iterable of batches")
    is_batch = isinstance(inputs, (Tensor, tuple, Mapping)) or targets is not None
    if is_batch or not isinstance(inputs, Iterable):
        yield inputs, targets
        return
    # A data loader draws seeds and its order while it is iterated over.
    state = torch.get_rng_state()
    own = [
        getattr(inputs, "generator", None),
        getattr(getattr(inputs, "sampler", None), "generator", None),
    ]
    generators = [(g, g.get_state()) for g in own if isinstance(g, torch.Generator)]
    try:
        for index, pair in enumerate(inputs):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise TypeError(
                    "inputs must give (inputs, targets) pairs where targets is None, got "
                    f"{_validate.describe(pair)} at {index}; batches of another form can be turned into pairs by a generator"
                )
            yield pair[0], pair[1]
    finally:
        torch.set_rng_state(state)
        for generator, before in generators:
            generator.set_state(before)


def checked_size(inputs: Any, index: int, is_sum: bool, given: Any = None) -> int:
    """Returns the weight of a batch among several: its number of examples.

    Args:
        inputs: those of the batch.
        index: its number.
        is_sum: True where batches have no weights.
        given: the number of examples as the caller gives it, or a function of the inputs that returns it.
    """
    if given is not None:
        size = given(inputs) if callable(given) else given
        return _validate.integer("batch_size", size, low=1)
    size = found_batch_size(inputs)
    if size is None and index > 0 and not is_sum:
        raise ValueError(
            "inputs must hold a tensor whose length is the number of samples, which several batches are weighted by, got "
            f"{_validate.describe(inputs)} in batch {index} (counted from 0); batch_size= can give that number"
        )
    return 1 if size is None else size


@contextmanager
def in_batch(index: int) -> Iterator[None]:
    """Names, in a ValueError raised within, the batch it was raised in; the first may be the only one and is not named."""
    try:
        yield
    except ValueError as error:
        if index == 0:
            raise
        raise type(error)(f"batch {index} of inputs (counted from 0): {error}") from error


def adds_up(loss_fn: Any) -> bool:
    """Tells whether the loss is a sum over examples, so that batches add up instead of being averaged."""
    keywords = getattr(loss_fn, "keywords", {})  # of a functools.partial
    return bool(getattr(loss_fn, "reduction", keywords.get("reduction")) == "sum")


def batch_size(inputs: Any) -> int:
    """Returns the length of the first tensor in ``inputs`` that has one; 1 where there is none."""
    found = found_batch_size(inputs)
    return 1 if found is None else found


def found_batch_size(inputs: Any) -> int | None:
    """Returns the length of the first tensor in ``inputs`` that has one; None where there is none."""
    if isinstance(inputs, Tensor):
        return len(inputs) if inputs.dim() else None
    parts: Iterable[Any] = ()
    if isinstance(inputs, Mapping):  # torch's tree functions take some mappings for leaves
        parts = inputs.values()
    elif isinstance(inputs, (tuple, list)):
        parts = inputs
    elif dataclasses.is_dataclass(inputs):
        parts = (getattr(inputs, field.name) for field in dataclasses.fields(inputs))
    elif not pytree.tree_is_leaf(inputs):
        parts = pytree.tree_leaves(inputs)
    return next((size for part in parts if (size := found_batch_size(part)) is not None), None)
