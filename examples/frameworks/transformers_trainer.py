"""Train a small causal language model by Hugging Face's Trainer, without choosing a learning rate.

    python examples/frameworks/transformers_trainer.py --steps 200

It prints the loss before and after, and the rate that it found. Nothing is downloaded: the model is made from a configuration,
and the texts count upwards. ``pip install -e ".[transformers]"`` brings what it needs.
"""

import argparse

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from metacurv.integrations.transformers import MetaCurvatureCallback
from metacurv.integrations.unwrap import our_optimizer


def texts(n: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Numbers that count up from a random one, modulo 50."""
    first = torch.randint(50, (n, 1), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "labels": row} for row in (first + torch.arange(16)) % 50]


def main(steps: int, folder: str) -> None:
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 16}
    config = GPT2Config(vocab_size=50, bos_token_id=0, eos_token_id=0, **sizes)
    model = GPT2LMHeadModel(config)
    arguments = TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=16, lr_scheduler_type="constant",
        report_to=[], logging_steps=steps // 10, save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    curvature = MetaCurvatureCallback(torch.optim.AdamW, weight_decay=0.01)
    trainer = Trainer(
        model, arguments, train_dataset=texts(2000, 1), eval_dataset=texts(200, 2),
        callbacks=[curvature], optimizer_cls_and_kwargs=curvature.optimizer_cls_and_kwargs,
    )  # fmt: skip
    print(f"loss before: {trainer.evaluate()['eval_loss']:.3f}")
    trainer.train()
    print(f"loss after: {trainer.evaluate()['eval_loss']:.3f}")
    print(f"learning rate found: {our_optimizer(trainer.optimizer).history[-1].lr[0]:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    parser.add_argument("--folder", default="runs/transformers", help="where the Trainer writes")
    main(**vars(parser.parse_args()))
