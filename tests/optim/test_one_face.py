"""``MetaCurvatureLR`` is one class to a user: its arguments choose the rule, and each rule shows only what is its own."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from metacurv import DirectionalLR, DirectionalRule, MetaCurvatureLR, ReciprocalLR
from tests.helpers import own
from tests.optim.directional.directional_training import loader, network, train, training_loss

LOSS = nn.functional.cross_entropy


def made(**options: Any) -> MetaCurvatureLR:
    model = network()
    probing = {"model": model, "loss_fn": LOSS, "probe": loader()} if "probe" in options else {}
    return MetaCurvatureLR(torch.optim.Adam(model.parameters()), **{**options, **probing})


@pytest.mark.parametrize(
    ("options", "cls"),
    [
        ({}, ReciprocalLR),
        ({"alpha": 0.1}, ReciprocalLR),
        ({"update_freq": 5, "n_hutchinson_samples": 2}, ReciprocalLR),
        ({"rule": "reciprocal"}, ReciprocalLR),
        ({"seed": 3}, ReciprocalLR),
        ({"probe": ...}, DirectionalLR),
        ({"probe": ..., "horizon": 10}, DirectionalLR),
        ({"probe": ..., "rule": "directional"}, DirectionalLR),
        ({"probe": ..., "rule": DirectionalRule(race=2)}, DirectionalLR),
    ],
)
def test_the_arguments_choose_the_rule(options: dict[str, Any], cls: type) -> None:
    opt = made(**options)
    assert type(opt) is cls
    assert isinstance(opt, MetaCurvatureLR)
    assert isinstance(opt, torch.optim.Optimizer)
    assert repr(opt).startswith("MetaCurvatureLR(rule=")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probe": ..., "alpha": 0.1}, "alpha must be left out with rule='directional'.* leave out either it or probe"),
        ({"probe": ..., "backend": "auto"}, "backend must be left out with rule='directional'.* leave out either it or probe"),
        ({"alpha": 0.1, "horizon": 9}, "horizon must be left out with rule='reciprocal'.* leave out either it or alpha"),
        ({"rule": "reciprocal", "probe": ...}, "probe must be left out with rule='reciprocal'.* did you mean"),
    ],
)  # fmt: skip
def test_arguments_of_two_rules_are_refused(options: dict[str, Any], message: str) -> None:
    if options.get("rule") == "reciprocal":
        options = {**options, "probe": loader()}
        with pytest.raises(ValueError, match=message):
            MetaCurvatureLR(torch.optim.Adam(network().parameters()), **options)
        return
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_whoever_forgets_the_probe_is_told() -> None:
    model = network()
    with pytest.raises(TypeError, match="probe must be given"):
        MetaCurvatureLR(
            torch.optim.Adam(model.parameters()), model=model, loss_fn=LOSS, horizon=100
        )


@pytest.mark.parametrize("options", [{"horizon": 4}, {"average": True}, {"loss_fn": LOSS}])
def test_it_is_the_probe_that_is_missing(options: dict[str, Any]) -> None:
    """Whatever else is missing too."""
    with pytest.raises(TypeError, match="probe must be given"):
        MetaCurvatureLR(torch.optim.Adam(network().parameters()), **options)


def test_help_shows_the_arguments() -> None:
    reciprocal = inspect.signature(ReciprocalLR).parameters
    directional = inspect.signature(DirectionalLR).parameters
    assert "alpha" in reciprocal
    assert "alpha" not in directional
    assert "probe" in directional
    assert "probe" not in reciprocal
    shown = inspect.signature(MetaCurvatureLR).parameters
    assert shown.keys() == reciprocal.keys() | directional.keys()
    documented = MetaCurvatureLR.__doc__ or ""
    assert [name for name in shown if f"``{name}``" not in documented] == ["optimizer"]


def test_an_argument_of_no_rule() -> None:
    with pytest.raises(
        TypeError, match="MetaCurvatureLR takes no argument 'lr'; it belongs to the base optimizer"
    ):
        made(lr=0.1)
    with pytest.raises(TypeError, match=r"MetaCurvatureLR takes no argument 'horizn'$"):
        made(probe=..., horizn=9)


def test_arguments_are_named() -> None:
    adam = torch.optim.Adam(network().parameters())
    with pytest.raises(
        TypeError, match=r"MetaCurvatureLR must get all arguments .* got float 0\.01"
    ):
        MetaCurvatureLR(adam, 0.01)  # type: ignore[call-overload]


def test_each_rule_shows_only_what_is_its_own() -> None:
    reciprocal, directional = made(), made(probe=...)
    assert not {"history", "averaged_parameters"} & set(dir(reciprocal))
    own = {"last_estimate", "update_freq", "n_hutchinson_samples", "estimator"}
    assert own <= set(dir(reciprocal))
    assert not own & set(dir(directional))
    for opt in (reciprocal, directional):
        for name in set(dir(type(opt))) - set(dir(torch.optim.Optimizer)):
            if not name.startswith("_"):
                getattr(opt, name)  # no property raises


@pytest.mark.parametrize("options", [{}, {"probe": ...}])
def test_a_loop_serves_both_rules(options: dict[str, Any]) -> None:
    opt = made(**options)
    loss = sum(p.square().sum() for group in opt.param_groups for p in group["params"])
    assert opt.update_curvature(loss) is ("probe" not in options)


@pytest.mark.parametrize(
    ("options", "averages"),
    [
        ({"horizon": 40}, True),
        ({"horizon": 40, "average": False}, False),
        ({}, True),
        ({"average": False}, False),
    ],
)
def test_it_averages_unless_told_otherwise(options: dict[str, Any], averages: bool) -> None:
    opt = made(probe=..., **options)
    assert isinstance(opt, DirectionalLR)
    assert (own(opt.state_dict())["average"] is not None) is averages
    if averages:
        with opt.averaged_parameters():
            pass
    else:
        with pytest.raises(ValueError, match="average"), opt.averaged_parameters():
            pass


def test_the_default_trains_as_with_average_true() -> None:
    losses = []
    for options in ({}, {"average": True}, {"average": False}):
        model = network()
        opt = MetaCurvatureLR(
            torch.optim.Adam(model.parameters()),
            model=model,
            loss_fn=LOSS,
            probe=loader(),
            horizon=60,
            **options,
        )
        train(model, opt, 60)
        losses.append(training_loss(model))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("options", [{}, {"probe": ...}])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))])
def test_copies_are_of_the_same_class(options: dict[str, Any], copied: Any) -> None:
    opt = made(**options)
    other = copied(opt)
    assert type(other) is type(opt)
    assert other.effective_lrs == pytest.approx(opt.effective_lrs, nan_ok=True)


def test_subclasses_are_of_a_rule() -> None:
    class Mine(ReciprocalLR):
        pass

    class Nobody(MetaCurvatureLR):
        pass

    adam = torch.optim.Adam(network().parameters())
    assert isinstance(Mine(adam, alpha=0.5), ReciprocalLR)
    with pytest.raises(TypeError, match="Nobody must be derived from DirectionalLR or Recip"):
        Nobody(torch.optim.Adam(network().parameters()))


@pytest.mark.parametrize(
    ("cls", "rule"), [(ReciprocalLR, "directional"), (DirectionalLR, "reciprocal")]
)
def test_a_class_of_one_rule_refuses_the_other(cls: Any, rule: str) -> None:
    with pytest.raises(ValueError, match="rule must be"):
        cls(torch.optim.Adam(network().parameters()), rule=rule)


def test_the_first_lines_say_what_the_default_does_and_what_to_pass() -> None:
    text = " ".join((MetaCurvatureLR.__doc__ or "").split())
    assert text.index("``probe=``") < text.index("reciprocal rule, lr / (1 + alpha") < 900
    assert "pass ``probe=`` unless you want just that" in text
