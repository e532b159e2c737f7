"""How many tensors, numbers and bytes a network holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor, nn


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of all of them; tensors that share memory count each.

    >>> import torch
    >>> bytes_of([torch.zeros(3), torch.zeros(2, dtype=torch.float64)])
    28
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def module_tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once.

    >>> len(module_tensors(nn.BatchNorm1d(3)))  # weight, bias, mean, variance, counter
    5
    """
    return [*module.parameters(), *module.buffers()]


def describe_tensors(tensors: Collection[Tensor], *, parameters: Iterable[Tensor]) -> dict[str, Any]:
    """Counts, bytes and dtypes; ready for JSON.

    >>> layer = nn.Linear(3, 2)
    >>> describe_tensors(list(layer.parameters()), parameters=layer.parameters())
    {'num_tensors': 2, 'num_parameters': 8, 'num_bytes': 32, 'dtypes': ['float32']}

    Args:
        tensors: All that the network holds.
        parameters: Those of them that are its parameters.
    """
    return {
        "num_tensors": len(tensors),
        "num_parameters": sum(parameter.numel() for parameter in parameters),
        "num_bytes": bytes_of(tensors),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}),
    }
