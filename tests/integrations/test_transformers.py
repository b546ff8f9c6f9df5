"""transformers.Trainer: causal language models and classifiers without a line of glue."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

import metacurv
from metacurv.integrations.transformers import MetaCurvatureCallback, ModelsOwnLoss
from metacurv.integrations.unwrap import our_optimizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Counting(Dataset[Any]):
    """Texts that count up from a random number, modulo 20; the label of a text is its first number modulo 3."""

    def __init__(self, n: int, *, classes: bool) -> None:
        generator = torch.Generator().manual_seed(n)
        self.texts = (torch.randint(0, 20, (n, 1), generator=generator) + torch.arange(12)) % 20
        self.classes = classes

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        text = self.texts[index]
        return {"input_ids": text, "labels": int(text[0]) % 3 if self.classes else text}


def language_model() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=20, n_embd=32, n_layer=2, n_head=2, n_positions=16,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=16, num_labels=3,
        )
    )  # fmt: skip


def trainer_of(
    folder: Path, model: nn.Module, *, steps: int = 60, settings: Any = None, **arguments: Any
) -> Any:
    classes = isinstance(model, BertForSequenceClassification)
    options: dict[str, Any] = {
        "max_steps": steps, "per_device_train_batch_size": 8, "report_to": [], "logging_steps": 10,
        "lr_scheduler_type": "constant", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no",
        **arguments,
    }  # fmt: skip
    curvature = MetaCurvatureCallback(torch.optim.AdamW, weight_decay=0.01, settings=settings)
    return Trainer(
        model,
        TrainingArguments(str(folder), **options),
        train_dataset=Counting(256, classes=classes),
        eval_dataset=Counting(64, classes=classes),
        callbacks=[curvature],
        optimizer_cls_and_kwargs=curvature.optimizer_cls_and_kwargs,
    )


@pytest.mark.parametrize("make", [language_model, classifier])
def test_it_trains(tmp_path: Path, make: Any) -> None:
    trainer = trainer_of(tmp_path, make())
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.7 * before
    opt = our_optimizer(trainer.optimizer)
    assert opt is not None
    assert opt._control._horizon == 60
    logged = [entry["effective_learning_rate"] for entry in trainer.state.log_history]
    assert len(set(logged)) > 3
    assert [group["weight_decay"] for group in opt.param_groups] == [0.01, 0.0]


def test_the_average_is_evaluated_and_saved_and_training_resumes(tmp_path: Path) -> None:
    saving = {
        "save_strategy": "steps",
        "save_steps": 30,
        "eval_strategy": "steps",
        "eval_steps": 30,
    }
    trainer = trainer_of(tmp_path / "a", language_model(), **saving)
    trainer.train()
    evaluated = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    saved = trainer_of(tmp_path / "b", language_model())
    saved._load_from_checkpoint(str(tmp_path / "a" / "checkpoint-30"))
    assert saved.evaluate()["eval_loss"] == pytest.approx(evaluated[0], rel=1e-5)

    resumed = trainer_of(tmp_path / "c", language_model(), **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-30"))
    for a, b in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_accumulation_and_autocast(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path, language_model(), steps=40, gradient_accumulation_steps=2, bf16=True
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.7 * before


def test_a_scheduler_beside_the_horizon_warns(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, language_model(), steps=3, lr_scheduler_type="linear")
    with pytest.warns(UserWarning, match="scheduler") as told:
        trainer.train()
    messages = [str(each.message) for each in told]
    assert any("lr_scheduler_type must be 'constant'" in message for message in messages)
    assert any("a scheduler has brought it to 67% of it" in message for message in messages)


def test_another_optimizer_is_named(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, language_model(), steps=3)
    trainer.optimizer_cls_and_kwargs = None
    with pytest.raises(ValueError, match="optimizer_cls_and_kwargs"):
        trainer.train()


@pytest.mark.parametrize("make", [language_model, classifier])
def test_the_models_own_loss_is_what_the_model_returns(make: Any) -> None:
    model = make().eval()
    data = Counting(8, classes=make is classifier)
    labels = torch.stack([torch.as_tensor(data[i]["labels"]) for i in range(8)])
    with torch.no_grad():
        out = model(input_ids=data.texts, labels=labels)
        assert float(ModelsOwnLoss(model)(out.logits, labels)) == pytest.approx(float(out.loss))


def test_the_gauss_newton_matrix_of_an_output_object() -> None:
    """The GGN at the logits, whether the loss is computed inside or outside of the model."""
    model = classifier().eval()
    data = Counting(8, classes=True)
    labels = data.texts[:, 0] % 3

    def of(inputs: Any, loss_fn: Any, **options: Any) -> Any:
        return metacurv.estimate_trace(
            model, loss_fn, inputs, labels, kind="ggn", method="hutchinson", n_samples=4, **options
        )

    inputs = {"input_ids": data.texts}
    picked = of(inputs, nn.functional.cross_entropy, output=lambda out: out.logits)
    outside = of(inputs, lambda out, y: nn.functional.cross_entropy(out.logits, y))
    inside = of({**inputs, "labels": labels}, lambda out, _: out.loss)
    assert picked.value == pytest.approx(outside.value, rel=1e-5)
    assert picked.value == pytest.approx(inside.value, rel=1e-5)


def test_a_loss_that_the_model_has_computed_is_refused_by_the_rule() -> None:
    model = classifier()
    data = Counting(16, classes=True)
    pairs = [({"input_ids": data.texts, "labels": data.texts[:, 0] % 3}, None)]
    opt = metacurv.MetaCurvatureLR(
        torch.optim.AdamW(model.parameters()), model=model, loss_fn=lambda out, _: out.loss,
        probe=pairs, horizon=100,
    )  # fmt: skip
    model(**pairs[0][0]).loss.backward()
    with warnings.catch_warnings(), pytest.raises(ValueError, match="from the logits"):
        opt.step()
