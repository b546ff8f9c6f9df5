"""The networks of the new tasks."""

from __future__ import annotations

from torch import Tensor, nn

from .text import ALPHABET


def leaf_conv() -> nn.Module:
    """Three convolutions along an outline, 16 to 32 channels, and a linear layer over their mean."""
    return nn.Sequential(
        nn.Conv1d(1, 16, 16, stride=8, padding=4),
        nn.ReLU(),
        nn.Conv1d(16, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv1d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 6),
    )


def demand_conv() -> nn.Module:
    """Two convolutions along a day, 16 channels, and a linear layer."""
    return nn.Sequential(
        nn.Conv1d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.Conv1d(16, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 12, 2),
    )


def digits_normalised() -> nn.Module:
    """Two batch-normalised convolutions with pooling, 16 and 32 channels, and a linear layer."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def satellite_dropout() -> nn.Module:
    """A perceptron 36-128-128-6 that drops a third of its hidden units."""
    layers: list[nn.Module] = []
    for fan_in in (36, 128):
        layers += [nn.Linear(fan_in, 128), nn.ReLU(), nn.Dropout(1 / 3)]
    return nn.Sequential(*layers, nn.Linear(128, 6))


class VowelGru(nn.Module):
    """A recurrent network of width 32 over the moments of a vowel, read at its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(12, 32, batch_first=True)
        self.head = nn.Linear(32, 9)

    def forward(self, x: Tensor) -> Tensor:
        """Maps series [B, 12, length] to logits [B, 9]."""
        states, _ = self.recurrent(x.transpose(1, 2))
        logits: Tensor = self.head(states[:, -1])
        return logits


class CharacterLstm(nn.Module):
    """A recurrent network of width 64 over characters."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(ALPHABET, 32)
        self.recurrent = nn.LSTM(32, 64, batch_first=True)
        self.head = nn.Linear(64, ALPHABET)

    def forward(self, codes: Tensor) -> Tensor:
        """Maps characters [B, length] to logits [B, length, 128]."""
        states, _ = self.recurrent(self.characters(codes))
        logits: Tensor = self.head(states)
        return logits
