"""What a framework's callback does to the optimizer: its probe and its number of steps are handed over, once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.optim.directional.directional_training import directional, loader, network, train


def waiting(model: torch.nn.Module, **options: Any) -> Any:
    opt = directional(torch.optim.AdamW(model.parameters()), model, probe="later", **options)
    assert opt.waits_for_probe  # type: ignore[attr-defined]
    return opt


def test_an_error_leaves_the_probe_to_be_handed_over() -> None:
    model = network()
    opt = waiting(model)
    with pytest.raises(ValueError, match="horizon must be >= 1, got 0"):
        opt.hand_over(loader(), 0)
    with pytest.raises(ValueError, match="probe must be"):
        opt.hand_over([], 20)
    assert opt.waits_for_probe
    opt.hand_over(loader(), 20)
    assert not opt.waits_for_probe
    train(model, opt, 2)
    with pytest.raises(ValueError, match="probe must be 'later' to be handed over"):
        opt.hand_over(loader(), 20)


def checkpoint(steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """State dicts of a model and of its optimizer, after some steps."""
    model = network()
    opt = directional(torch.optim.AdamW(model.parameters()), model)
    train(model, opt, steps)
    return model.state_dict(), opt.state_dict()


def test_a_checkpoint_that_waits_is_loaded_at_the_hand_over() -> None:
    model = network()
    opt = waiting(model)
    opt.load_state_dict(checkpoint(5)[1])
    opt.hand_over(loader())
    assert opt._control._stage.steps == 5


@pytest.mark.filterwarnings("ignore:state_dict has nothing of MetaCurvatureLR")
@pytest.mark.parametrize("later", ["bare", "other"])
def test_a_later_checkpoint_replaces_the_one_that_waits(later: str) -> None:
    model = network()
    opt = waiting(model)
    opt.load_state_dict(checkpoint(5)[1])
    bare = torch.optim.AdamW(network().parameters()).state_dict()
    opt.load_state_dict(bare if later == "bare" else checkpoint(3)[1])
    opt.hand_over(loader())
    assert opt._control._stage.steps == (0 if later == "bare" else 3)


def test_a_checkpoint_still_waits_after_a_probe_that_fails() -> None:
    class Failing:
        def __iter__(self) -> Any:
            raise OSError("the disk is away")

    model = network()
    opt = waiting(model)
    opt.load_state_dict(checkpoint(5)[1])
    with pytest.raises(OSError, match="the disk is away"):
        opt.hand_over(Failing())
    assert opt.waits_for_probe
    opt.hand_over(loader())
    assert opt._control._stage.steps == 5
