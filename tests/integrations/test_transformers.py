"""transformers.Trainer: causal language models and classifiers without a line of glue."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForNextSentencePrediction,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import metacurv
from metacurv.integrations.models_own_loss import check_models_own_loss
from metacurv.integrations.transformers import MetaCurvatureCallback, _logits
from metacurv.integrations.unwrap import our_optimizer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Counting(Dataset[Any]):
    """Texts that count up from a random number, modulo 20, for a model; a classifier's label is the first number's class."""

    def __init__(self, n: int, *, of: Any) -> None:
        generator = torch.Generator().manual_seed(n)
        self.texts = (torch.randint(0, 20, (n, 1), generator=generator) + torch.arange(12)) % 20
        is_classifier = isinstance(
            of, (BertForSequenceClassification, BertForNextSentencePrediction)
        )
        self.classes = of.config.num_labels if is_classifier else 0
        self.has_decoder = of.config.is_encoder_decoder

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        text = self.texts[index]
        row = {"input_ids": text, "labels": int(text[0]) % self.classes if self.classes else text}
        return {**row, "decoder_input_ids": text} if self.has_decoder else row


def language_model() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=20, n_embd=32, n_layer=2, n_head=2, n_positions=16,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def classifier(kind: Any = BertForSequenceClassification, *, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = kind(
        BertConfig(
            vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=16, num_labels=classes,
        )
    )  # fmt: skip
    return model


def next_sentence() -> nn.Module:
    return classifier(BertForNextSentencePrediction, classes=2)


def t5() -> nn.Module:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
            decoder_start_token_id=0,
        )
    )  # fmt: skip


def bart() -> nn.Module:
    torch.manual_seed(0)
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=20, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=16,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
        )
    )  # fmt: skip


def mixture(*, adds_router_loss: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, num_local_experts=4, max_position_embeddings=16,
            output_router_logits=adds_router_loss, router_aux_loss_coef=0.5,
        )
    )  # fmt: skip


def plain_mixture() -> nn.Module:
    return mixture(adds_router_loss=False)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def trainer_of(
    folder: Path, model: nn.Module, *, steps: int = 60, settings: Any = None, loss_fn: Any = None,
    also: Any = (), **arguments: Any,
) -> Any:  # fmt: skip
    options: dict[str, Any] = {
        "max_steps": steps, "per_device_train_batch_size": 8, "report_to": [], "logging_steps": 10,
        "lr_scheduler_type": "constant", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no",
        **arguments,
    }  # fmt: skip
    curvature = MetaCurvatureCallback(
        torch.optim.AdamW, weight_decay=0.01, settings=settings, loss_fn=loss_fn
    )
    return Trainer(
        model,
        TrainingArguments(str(folder), **options),
        train_dataset=Counting(256, of=model),
        eval_dataset=Counting(64, of=model),
        callbacks=[curvature, *also],
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
    assert opt._control._plan.horizon == 60
    logged = [entry["effective_learning_rate"] for entry in trainer.state.log_history]
    assert len(set(logged)) > 3
    assert [group["weight_decay"] for group in opt.param_groups] == [0.01, 0.0]


class Keeping(TrainerCallback):
    """Keeps, at the end of some steps, copies of the iterate and of the average of a parameter of the model."""

    def __init__(self) -> None:
        self.iterate: dict[int, Tensor] = {}
        self.average: dict[int, Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        opt = our_optimizer(given["optimizer"])
        if state.global_step % 30 == 0 and opt is not None:
            self.iterate[state.global_step] = given["model"].lm_head.weight.detach().clone()
            with opt.averaged_parameters():
                self.average[state.global_step] = given["model"].lm_head.weight.detach().clone()


def test_the_average_is_evaluated_and_saved_and_training_resumes(tmp_path: Path) -> None:
    saving = {
        "save_strategy": "steps",
        "save_steps": 30,
        "eval_strategy": "steps",
        "eval_steps": 30,
    }
    kept = Keeping()
    trainer = trainer_of(tmp_path / "a", language_model(), also=[kept], **saving)
    trainer.train()
    evaluated = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    saved = trainer_of(tmp_path / "b", language_model())
    saved._load_from_checkpoint(str(tmp_path / "a" / "checkpoint-30"))
    assert saved.evaluate()["eval_loss"] == pytest.approx(evaluated[0], rel=1e-5)
    torch.testing.assert_close(saved.model.lm_head.weight, kept.average[30], rtol=0, atol=0)
    assert not torch.equal(kept.average[30], kept.iterate[30])

    resumed = trainer_of(tmp_path / "c", language_model(), also=[kept], **saving)
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


def test_a_warm_up_gets_no_warning(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path,
        language_model(),
        steps=10,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=3,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer.train()


def test_another_training_of_the_same_trainer_goes_on(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, language_model(), steps=20)
    trainer.train()
    opt = our_optimizer(trainer.optimizer)
    with pytest.warns(RuntimeWarning, match="horizon=20 steps have been taken"):
        trainer.train()
    assert our_optimizer(trainer.optimizer) is opt
    assert opt is not None
    assert opt._control._stage.steps == 2 * 20


def test_a_probe_of_ones_own_stays(tmp_path: Path) -> None:
    model = language_model()
    texts = Counting(32, of=model).texts
    probe = [({"input_ids": texts}, texts)]
    trainer = trainer_of(tmp_path, model, steps=5, settings={"probe": probe, "horizon": 50})
    trainer.train()
    opt = our_optimizer(trainer.optimizer)
    assert opt is not None
    assert opt._control._probes._source._batches is probe  # type: ignore[attr-defined]
    assert opt._control._plan.horizon == 50


def test_another_optimizer_is_named(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, language_model(), steps=3)
    trainer.optimizer_cls_and_kwargs = None
    with pytest.raises(ValueError, match="optimizer_cls_and_kwargs"):
        trainer.train()


REFUSED = {
    t5: r"returns \S+, and its loss_function makes \S+ of the logits",
    bart: r"returns \S+, and its loss_function makes \S+ of the logits",
    mixture: r"returns \S+, and its loss_function makes \S+ of the logits",
    next_sentence: r"its loss_function fails with the logits alone: shape",
}


@pytest.mark.parametrize("make", REFUSED)
@pytest.mark.parametrize("where", ["handed over", "of one's own"])
def test_a_loss_that_is_not_of_the_logits_alone_is_refused(
    tmp_path: Path, make: Any, where: str
) -> None:
    model = make()
    settings: Any = None
    if where == "of one's own":
        (batch,) = DataLoader(Counting(16, of=model), batch_size=16)
        labels = batch.pop("labels")
        settings = {"probe": [(batch, labels)]}
    trainer = trainer_of(tmp_path, model, steps=3, settings=settings)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=f"loss_fn must be given.*{REFUSED[make]}"):
        trainer.train()
    assert all(map(torch.equal, before, model.parameters()))
    opt = our_optimizer(trainer.optimizer)
    assert opt is not None
    assert opt.waits_for_probe is (where == "handed over")


@pytest.mark.parametrize("make", [t5, bart, mixture])
def test_a_loss_that_is_given_is_taken(tmp_path: Path, make: Any) -> None:
    trainer = trainer_of(tmp_path, make(), steps=3, loss_fn=cross_entropy)
    trainer.train()
    opt = our_optimizer(trainer.optimizer)
    assert opt is not None
    assert opt._control._model.loss_fn is cross_entropy


def test_a_smoothed_loss_is_refused(tmp_path: Path) -> None:
    smoothed = {"steps": 3, "label_smoothing_factor": 0.1}
    trainer = trainer_of(tmp_path, classifier(), **smoothed)
    with pytest.raises(ValueError, match=r"loss_fn must be given.*label_smoothing_factor=0\.1"):
        trainer.train()
    trainer_of(tmp_path, classifier(), loss_fn=cross_entropy, **smoothed).train()


def optimizer_of(model: nn.Module) -> Any:
    base = torch.optim.AdamW(model.parameters())
    return metacurv.MetaCurvatureLR(base, model=model, loss_fn=cross_entropy, probe="later")


def checked(model: nn.Module) -> None:
    check_models_own_loss(
        model,
        optimizer_of(model),
        DataLoader(Counting(32, of=model), batch_size=16),
        batch_fn=None,
        output=lambda out: out.logits,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [language_model, classifier, plain_mixture])
def test_the_models_own_loss_is_what_the_model_returns(make: Any, dtype: Any) -> None:
    checked(make().to(dtype))


def test_a_model_without_a_loss_is_refused() -> None:
    class Silent(GPT2LMHeadModel):  # type: ignore[misc]
        def forward(self, labels: Any = None, **inputs: Any) -> Any:
            return super().forward(**inputs)

    silent = Silent(language_model().config)
    with pytest.raises(ValueError, match=r"loss_fn must be given.*returns no loss"):
        checked(silent)


def test_the_check_of_the_loss_leaves_no_trace() -> None:
    model: Any = language_model().train()
    model.transformer.h[0].eval()
    model.register_buffer("calls", torch.zeros(1))

    def count(*_: Any) -> None:
        model.calls.add_(torch.rand(1))
        in_check.append(model.training)

    model.register_forward_hook(count)
    in_check: list[bool] = []
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    checked(model)
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert model.calls == 0
    assert in_check
    assert not any(in_check)


def test_the_gauss_newton_matrix_of_an_output_object() -> None:
    """The GGN at the logits, whether the loss is computed inside or outside of the model."""
    model = classifier().eval()
    data = Counting(8, of=model)
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
    data = Counting(16, of=model)
    pairs = [({"input_ids": data.texts, "labels": data.texts[:, 0] % 3}, None)]
    opt = metacurv.MetaCurvatureLR(
        torch.optim.AdamW(model.parameters()), model=model, loss_fn=lambda out, _: out.loss,
        probe=pairs, horizon=100,
    )  # fmt: skip
    model(**pairs[0][0]).loss.backward()
    with warnings.catch_warnings(), pytest.raises(ValueError, match="from the logits"):
        opt.step()


class OfUsers(nn.Module):
    """Returns a plain dict."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(20, 16), nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.embedding(input_ids[:, 0]))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_model_of_ones_own_that_returns_a_dict(tmp_path: Path) -> None:
    curvature = MetaCurvatureCallback(loss_fn=nn.functional.cross_entropy)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=40, per_device_train_batch_size=16, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no", lr_scheduler_type="constant",
    )  # fmt: skip
    texts = torch.randint(0, 20, (256, 12), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": text, "labels": int(text[0]) % 3} for text in texts]

    def trainer(callback: MetaCurvatureCallback) -> Any:
        return Trainer(
            OfUsers(), arguments, train_dataset=data, callbacks=[callback],
            optimizer_cls_and_kwargs=callback.optimizer_cls_and_kwargs,
        )  # fmt: skip

    trained = trainer(curvature)
    before = trained.evaluate(data)["eval_loss"]
    trained.train()
    assert trained.evaluate(data)["eval_loss"] < 0.7 * before
    with pytest.raises(
        ValueError,
        match=r"loss_fn must be given .* 'OfUsers' object has no attribute 'loss_function'",
    ):
        trainer(MetaCurvatureCallback()).train()


def test_a_base_that_makes_no_optimizers_is_named() -> None:
    made: Any = torch.optim.AdamW([nn.Parameter(torch.ones(1))])
    with pytest.raises(TypeError, match=r"base must be a class of optimizers, .* got .*AdamW"):
        MetaCurvatureCallback(made)


def test_an_output_without_logits_is_named() -> None:
    with pytest.raises(TypeError, match=r"model must return an output with logits, .* got dict"):
        _logits({"scores": torch.ones(1)})
