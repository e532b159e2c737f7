"""A small network, as a class and as the source of an architecture file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

ARCH = """
import torch


class Net(torch.nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.fc = torch.nn.Linear(3, width)
        self.bn = torch.nn.BatchNorm1d(width)

    def forward(self, x):
        return self.bn(self.fc(x))


def make_classifier(num_classes=5):
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, num_classes))


def make_nothing():
    return "nothing"


def make_trouble():
    raise ValueError("trouble inside")
"""


class Net(nn.Module):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.fc = nn.Linear(3, width)
        self.bn = nn.BatchNorm1d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.fc(x))


def write_arch(folder: Path, source: str = ARCH) -> str:
    """Write the architecture file; its name for --arch."""
    (folder / "arch.py").write_text(source)
    return f"{folder / 'arch.py'}:Net"


def saved(value: Any, path: Path, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}
