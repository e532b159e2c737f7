"""Names of tensors: their leading prefixes, and their shapes beside an architecture's."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from jacli.models.weights import Weights

Shapes = dict[str, tuple[int, ...]]

_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)$")

UNKNOWN = (-1,)

COUNTER = "num_batches_tracked"
"""BatchNorm's counter, absent from files of PyTorch 0.3; it has no influence in evaluation mode."""


def candidate_prefixes(names: Mapping[str, Any]) -> list[str]:
    """The empty prefix, then every leading dotted prefix of the names, shorter ones first.

    >>> weights = {"module.fc.weight": torch.zeros(2, 3), "module.fc.bias": torch.zeros(2)}
    >>> candidate_prefixes(weights)
    ['', 'module.', 'module.fc.']
    """
    prefixes = {"": None}
    for name in names:
        parts = name.split(".")
        for length in range(1, len(parts)):
            prefixes[".".join(parts[:length]) + "."] = None
    return sorted(prefixes, key=lambda prefix: prefix.count("."))


def prefixes_to_try(names: Mapping[str, Any], asked: str | None) -> list[str]:
    """The prefix asked for, or every candidate.

    >>> prefixes_to_try({"module.weight": 0}, None), prefixes_to_try({"module.weight": 0}, "model.")
    (['', 'module.'], ['model.'])
    """
    return candidate_prefixes(names) if asked is None else [asked]


def common_prefix(names: Mapping[str, Any]) -> str:
    """The longest dotted prefix that all names share.

    >>> weights = {"module.fc.weight": torch.zeros(2, 3), "module.fc.bias": torch.zeros(2)}
    >>> common_prefix(weights)
    'module.fc.'
    """
    shared = [
        prefix for prefix in candidate_prefixes(names) if all(name.startswith(prefix) for name in names)
    ]
    return shared[-1]


def under_prefix(weights: Weights, prefix: str) -> OrderedDict[str, torch.Tensor]:
    """The tensors whose names start with the prefix, under the rest of their names.

    The versions that ``state_dict()`` notes for each submodule move along: modules use them to read
    files of older versions.

    >>> weights = {"module.fc.weight": torch.zeros(2, 3), "module.fc.bias": torch.zeros(2)}
    >>> list(under_prefix(weights, "module."))
    ['fc.weight', 'fc.bias']
    """
    part = OrderedDict(
        (name[len(prefix) :], tensor) for name, tensor in weights.items() if name.startswith(prefix)
    )
    versions = getattr(weights, "_metadata", None)
    if isinstance(versions, Mapping):
        dotted = ((f"{name}." if name else "", version) for name, version in versions.items())
        part._metadata = OrderedDict(  # type: ignore[attr-defined]
            (name[len(prefix) :].removesuffix("."), version)
            for name, version in dotted
            if name.startswith(prefix)
        )
    return part


def without_names(weights: Weights, names: Collection[str]) -> OrderedDict[str, torch.Tensor]:
    """The tensors but those of some names.

    >>> weights = {"module.fc.weight": torch.zeros(2, 3), "module.fc.bias": torch.zeros(2)}
    >>> list(without_names(weights, ["module.fc.bias"]))
    ['module.fc.weight']
    """
    rest = under_prefix(weights, "")
    for name in names:
        rest.pop(name, None)
    return rest


def modern_names(weights: Weights) -> Weights:
    """Names as torchvision has them now: its DenseNet files still say ``norm.1`` for ``norm1``.

    ``torchvision.models.densenet`` renames them itself, but only while downloading.

    >>> list(modern_names({"features.denseblock1.denselayer1.norm.1.weight": torch.zeros(3)}))
    ['features.denseblock1.denselayer1.norm1.weight']
    """
    if not any(_OLD_DENSENET.match(name) for name in weights):
        return weights
    return OrderedDict((_OLD_DENSENET.sub(r"\1\2", name), tensor) for name, tensor in weights.items())


def shapes_of(weights: Mapping[str, Any]) -> Shapes:
    """Name -> shape of those entries that are tensors; `UNKNOWN` of a lazy layer's before its first call.

    >>> shapes_of(torch.nn.Linear(3, 2).state_dict())
    {'weight': (2, 3), 'bias': (2,)}
    """
    return {
        name: UNKNOWN if is_lazy(tensor) else tuple(tensor.shape)
        for name, tensor in weights.items()
        if isinstance(tensor, torch.Tensor)
    }


def without_counters(shapes: Shapes) -> Shapes:
    """The shapes without BatchNorm's counters.

    >>> list(without_counters(shapes_of(torch.nn.BatchNorm1d(3).state_dict())))
    ['weight', 'bias', 'running_mean', 'running_var']
    """
    return {name: shape for name, shape in shapes.items() if not name.endswith(COUNTER)}


def head_sizes(expected: Shapes, found: Shapes) -> list[int]:
    """Numbers of classes that could explain why the shapes differ; empty where they cannot.

    All names must agree, and the shapes that differ must do so in their first axis only.  A detector's
    box regression has 4 outputs a class, so the smaller sizes come first.

    >>> head_sizes({"fc.weight": (1000, 64), "fc.bias": (1000,)}, {"fc.weight": (10, 64), "fc.bias": (10,)})
    [10]
    """
    expected, found = without_counters(expected), without_counters(found)
    if expected.keys() != found.keys():
        return []
    different = [(found[name], shape) for name, shape in expected.items() if found[name] != shape]
    if any(not mine or not shape or mine[1:] != shape[1:] for mine, shape in different):
        return []
    return sorted({mine[0] for mine, _ in different})
