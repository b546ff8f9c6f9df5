"""A ready callback that writes the learning rate that is in effect to any logger."""

from __future__ import annotations

from collections.abc import Callable

from metacurv.optim.directional.record import DirectionalRecord


def log_rates(
    log: Callable[[str, float, int], object], name: str = "lr"
) -> Callable[[DirectionalRecord], None]:
    """Makes an ``on_update`` for ``MetaCurvatureLR`` that logs the learning rate of every parameter group at every event.

    The loggers of frameworks show ``group["lr"]``, which stays the user's.

    Args:
        log: is called as ``log(tag, value, step)``, as TensorBoard's ``SummaryWriter.add_scalar`` is.
        name: the tag; with several groups "/0", "/1", ... are added.

    Returns:
        The callback.

    Examples:
        >>> seen = []
        >>> callback = log_rates(lambda tag, value, step: seen.append((tag, value, step)))
        >>> callback(DirectionalRecord(20, "race", 0.5, [0.01], [0.001], [], [], [], [(0.01, 0.5)], True))
        >>> seen
        [('lr', 0.001, 20)]
    """

    def on_update(record: DirectionalRecord) -> None:
        for group, lr in enumerate(record.effective_lrs):
            log(name if len(record.effective_lrs) == 1 else f"{name}/{group}", lr, record.step)

    return on_update
