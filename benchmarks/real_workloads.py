"""Networks as people train them, small enough for a processor: GPT, LLaMA-like, BERT-like, ViT, ResNet-18, thin adapters.

The first is the benchmarks' own, the next three are built by transformers from a configuration. All are trained for some
hundred steps on data that need no download, and measured on one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.curvature_workloads import (
    CONTEXT,
    SEED,
    TRANSFORMER,
    Batch,
    Workload,
    gpt,
    manual,
    shuffled,
    train,
    windows,
)

IGNORED = -100
GPT_STEPS = 1500  # to a loss of 1.2 a character


class Logits(nn.Module):
    """A model of transformers as a function from its main input to logits, classes in dimension 1."""

    def __init__(self, model: nn.Module, argument: str) -> None:
        super().__init__()
        self.model, self.argument = model, argument

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(**{self.argument: x}).logits
        return logits.transpose(1, 2) if logits.dim() == 3 else logits


def made(
    name: str, make: Callable[[], nn.Module], batch: Batch, *, steps: int, lr: float
) -> Workload:
    """Builds from SEED, trains, and takes a batch that training does not see."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = make()
        train(model, batch, steps=steps, lr=lr)
    model.eval()
    x, y = batch(1_000_000)
    return Workload(name, TRANSFORMER, True, model, x, y, False, nn.CrossEntropyLoss())


@cache
def llama() -> Workload:
    """Four blocks of width 128 with RMS norms, gates, rotary positions and grouped queries; text by characters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    text, vocabulary = manual()
    configuration = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        use_cache=False,
        attn_implementation="eager",
    )
    make = lambda: Logits(LlamaForCausalLM(configuration), "input_ids")  # noqa: E731
    return made("LLaMA-like", make, windows(text, 16), steps=300, lr=1e-3)


@cache
def bert() -> Workload:
    """Four layers of width 128; one character in seven is hidden and to be found."""
    from transformers import BertConfig, BertForMaskedLM

    text, vocabulary = manual()
    configuration = BertConfig(
        vocab_size=vocabulary + 1,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=CONTEXT,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    plain = windows(text, 16)

    def masked(step: int) -> tuple[Tensor, Tensor]:
        x, _ = plain(step)
        hidden = torch.rand(x.shape, generator=torch.Generator().manual_seed(step)) < 1 / 7
        return x.masked_fill(hidden, vocabulary), x.masked_fill(~hidden, IGNORED)

    make = lambda: Logits(BertForMaskedLM(configuration), "input_ids")  # noqa: E731
    return made("BERT-like", make, masked, steps=300, lr=1e-3)


def digit_images(size: int, channels: int) -> tuple[Tensor, Tensor]:
    """scikit-learn's digits as images of ``size``, [1797, channels, size, size], and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    if size != 8:
        x = nn.functional.interpolate(x, size=(size, size), mode="bilinear")
    return x.repeat(1, channels, 1, 1), torch.from_numpy(labels).long()


def of_images(x: Tensor, y: Tensor, size: int) -> Batch:
    """Batches in the experiment's order; the one that is measured comes first in the data."""
    batch = shuffled(x, y, size)
    return lambda step: batch(step) if step < 1_000_000 else (x[:size], y[:size])


@cache
def vit() -> Workload:
    """Four layers of width 64 on 16 x 16 digits in patches of 4 x 4, batch 64."""
    from transformers import ViTConfig, ViTForImageClassification

    x, y = digit_images(16, 1)
    configuration = ViTConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        image_size=16,
        patch_size=4,
        num_channels=1,
        num_labels=10,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    make = lambda: Logits(ViTForImageClassification(configuration), "pixel_values")  # noqa: E731
    return made("ViT", make, of_images(x, y, 64), steps=300, lr=1e-3)


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch norms and a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.body(x) + self.shortcut(x))


def resnet18(classes: int) -> nn.Sequential:
    """ResNet-18 with the first layer that 32 x 32 images take: 3 x 3, no pooling."""
    widths, blocks = (64, 128, 256, 512), []
    before = 64
    for width in widths:
        blocks += [Residual(before, width, 1 if width == before else 2), Residual(width, width, 1)]
        before = width
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 1, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, classes),
    )


@cache
def resnet() -> Workload:
    """ResNet-18 on 32 x 32 digits, batch 16, in eval mode."""
    x, y = digit_images(32, 3)
    batch = of_images(x, y, 16)
    return made("ResNet-18, eval", lambda: resnet18(10), batch, steps=40, lr=1e-3)


class Adapted(nn.Module):
    """A frozen linear layer with a product of two thin matrices beside it, rank 8 (Hu et al. 2022, "LoRA")."""

    def __init__(self, base: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + (x @ self.a.t()) @ self.b.t()
        return out


@cache
def lora() -> Workload:
    """The trained GPT, frozen, with adapters at every linear layer, which are trained on the manual read backwards."""
    work, (text, _) = gpt(GPT_STEPS), manual()

    def make() -> nn.Module:
        import copy

        model = copy.deepcopy(work.model).requires_grad_(False)
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, Adapted(child))
        return model

    return made("GPT with adapters", make, windows(text.flip(0), 16), steps=200, lr=3e-3)


@cache
def wide_vocabulary(size: int = 50_000) -> Workload:
    """The GPT's blocks over 50,000 tokens, tied, as it begins: batch 4 x 64."""
    from benchmarks.curvature_networks import CharacterTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model: Any = CharacterTransformer(
            size, width=128, heads=4, blocks=5, context=CONTEXT, tied=True
        )
        x, y = (torch.randint(size, (4, CONTEXT)) for _ in range(2))
    return Workload(
        "GPT, 50,000 tokens", TRANSFORMER, False, model, x, y, False, nn.CrossEntropyLoss()
    )


NETWORKS: dict[str, Callable[[], Workload]] = {
    "gpt": partial(gpt, GPT_STEPS),
    "llama": llama,
    "bert": bert,
    "vit": vit,
    "resnet": resnet,
    "lora": lora,
}
