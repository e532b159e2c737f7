"""Description of a set of weights, for ``jacli inspect``."""

from __future__ import annotations

from typing import Any

import torch

from jacli.models.prefixes import common_prefix
from jacli.models.registry import matching_architectures
from jacli.models.tensors import describe_tensors
from jacli.models.weights import Selection

_SHOWN = 3


def describe_weights(selection: Selection) -> dict[str, Any]:
    """Counts, types, names and matching torchvision architectures; ready for JSON.

    The number of parameters counts every element but BatchNorm's statistics and counters: which
    tensors are parameters is not written in a state dict.

    >>> layer = torch.nn.BatchNorm1d(3)
    >>> described = describe_weights(Selection("", layer.state_dict()))
    >>> described["num_tensors"], described["num_parameters"]  # its statistics are no parameters
    (5, 6)
    """
    tensors = {name: t for name, t in selection.weights.items() if isinstance(t, torch.Tensor)}
    listed = [{"name": name, "shape": list(t.shape)} for name, t in tensors.items()]
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    parameters = [t for name, t in tensors.items() if not name.endswith(statistics)]
    return {
        "weights_key": selection.key or None,
        **describe_tensors(tensors.values(), parameters=parameters),
        "common_prefix": common_prefix(tensors),
        "first_tensors": listed[:_SHOWN],
        "last_tensors": listed[_SHOWN:][-_SHOWN:],
        "architectures": _architectures(tensors),
        "notes": list(selection.notes),
    }


def _architectures(tensors: dict[str, torch.Tensor]) -> list[str]:
    try:
        matches = matching_architectures(tensors)
    except (ImportError, RuntimeError):  # without torchvision nothing is recognised, and all else still is
        return []
    return sorted({f"torchvision:{match.name}" for match in matches})
