"""Spellings of tensors' names: with and without the names of wrappers inside them, and shared tensors.

`torch.compile`, FSDP, activation checkpointing and `DataParallel` hold the module that they wrap under a
name of their own, which ends up in the middle of a key where only a part was wrapped:
``encoder._orig_mod.0.weight``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch.nn.parameter import is_lazy

from jacli.errors.printable import count_of
from jacli.models.prefixes import under_prefix
from jacli.models.weights import Weights

_PRIVATE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_WRAPPERS = (_PRIVATE, (*_PRIVATE, "module"))
"""Names that are dropped together: ``module`` may be a network's own, so it is kept if possible."""


@dataclass(frozen=True)
class Spelling:
    """A file's tensors under names that an architecture may have.

    Attributes:
        weights: The tensors, their names without those of wrappers.
        own: Such a name of a tensor or module -> the architecture's; names that are missing stay.
        note: What the user must be told about it; empty where the names are the file's.
    """

    weights: Weights
    own: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def part(self, prefix: str) -> Weights:
        """The tensors whose names start with the prefix, under the architecture's names."""
        return _renamed(under_prefix(self.weights, prefix), self.own)


def spellings(weights: Weights, module: torch.nn.Module) -> Iterator[Spelling]:
    """The file's own names; then, where file or architecture names wrappers, the names without them.

    No spelling is given in which two tensors would have one name.

    >>> weights = {"encoder._orig_mod.weight": torch.zeros(2, 3), "encoder._orig_mod.bias": torch.zeros(2)}
    >>> module = torch.nn.ModuleDict({"encoder": torch.nn.Linear(3, 2)})
    >>> [list(spelling.weights) for spelling in spellings(weights, module)]
    [['encoder._orig_mod.weight', 'encoder._orig_mod.bias'], ['encoder.weight', 'encoder.bias']]
    """
    yield Spelling(weights)
    expected = list(module.state_dict())
    seen: tuple[str, ...] = ()
    for wrappers in _WRAPPERS:
        plain = {name: _without(name, wrappers) for name in weights}
        own = {_without(name, wrappers): name for name in expected}
        dropped = _segments(weights, wrappers)
        added = _segments(expected, wrappers)
        news = {*dropped, *added} & set(wrappers[len(seen) :])
        seen = wrappers
        if not news or len(set(plain.values())) < len(plain) or len(own) < len(expected):
            continue
        own.update((_without(f"{name}.", wrappers)[:-1], name) for name, _ in module.named_modules())
        yield Spelling(_renamed(weights, plain, wrappers), own, _note(weights, dropped, added))


def strip_prefix_of(weights: Weights, asked: str | None) -> str | None:
    """The prefix asked for, with its final dot where the names have one there.

    >>> strip_prefix_of({"model.fc.weight": torch.zeros(2, 3)}, "model")
    'model.'
    """
    if asked and any(name.startswith(f"{asked}.") for name in weights):
        return f"{asked}."
    return asked


def with_shared(expected: Mapping[str, torch.Tensor], part: Weights) -> tuple[Weights, list[str]]:
    """Add the tensors that a file stores once since they share their memory with another one.

    safetensors stores tied weights under one of their names.  A missing name counts as present where the
    built architecture keeps it in the memory of a tensor that is there, whole or as a view.

    >>> tied = torch.nn.ModuleList([torch.nn.Linear(2, 2, bias=False)] * 2)
    >>> part = {"0.weight": torch.eye(2)}
    >>> with_shared(tied.state_dict(keep_vars=True), part)[1]
    ['1.weight shares its memory with 0.weight: taken from there']

    Args:
        expected: The architecture's ``state_dict(keep_vars=True)``.
        part: Tensors of the file, under its names.

    Returns:
        The part, completed, and a sentence for each tensor added.
    """
    present: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in expected.items():
        if _has_memory(tensor) and _has_memory(part.get(name)) and tensor.shape == part[name].shape:
            present.setdefault(tensor.untyped_storage().data_ptr(), []).append((name, tensor))
    if not present:
        return part, []
    added = OrderedDict(part)
    notes = []
    for name, tensor in expected.items():
        if name in part or not _has_memory(tensor):
            continue
        for other, source in present.get(tensor.untyped_storage().data_ptr(), ()):
            offset = _offset_within(tensor, source)
            if offset is not None:
                stored = torch.empty_strided(source.shape, source.stride(), dtype=part[other].dtype)
                stored.copy_(part[other])
                added[name] = stored.as_strided(tensor.shape, tensor.stride(), offset)
                notes.append(f"{name} shares its memory with {other}: taken from there")
                break
    if hasattr(part, "_metadata"):
        added._metadata = part._metadata  # type: ignore[attr-defined]
    return added, notes


def _has_memory(tensor: object) -> bool:
    return (
        isinstance(tensor, torch.Tensor)
        and not is_lazy(tensor)
        and tensor.layout == torch.strided
        and tensor.device.type != "meta"
        and not tensor.is_quantized
        and tensor.numel() > 0
    )


def _offset_within(tensor: torch.Tensor, source: torch.Tensor) -> int | None:
    """Where another tensor of the same storage begins in one without gaps, in elements; None if outside."""
    if tensor.dtype != source.dtype or not _is_dense(source):
        return None
    offset = int(tensor.storage_offset()) - int(source.storage_offset())
    last = offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return offset if offset >= 0 and last < source.numel() else None


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the tensor is contiguous up to a permutation of its axes (a transposed weight is)."""
    step = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != step:
            return False
        step *= size
    return True


def _without(name: str, wrappers: Collection[str]) -> str:
    *modules, last = name.split(".")
    return ".".join((*(module for module in modules if module not in wrappers), last))


def _segments(names: Collection[str], wrappers: Collection[str]) -> list[str]:
    met = {segment for name in names for segment in name.split(".")[:-1]}
    return [wrapper for wrapper in wrappers if wrapper in met]


def _renamed(weights: Weights, names: Mapping[str, str], wrappers: Collection[str] = ()) -> Weights:
    """The tensors under other names, and the versions that ``state_dict()`` notes under those of modules."""
    renamed = OrderedDict((names.get(name, name), tensor) for name, tensor in weights.items())
    versions = getattr(weights, "_metadata", None)
    if isinstance(versions, Mapping):
        plain = ((_without(f"{name}.", wrappers)[:-1], version) for name, version in versions.items())
        renamed._metadata = OrderedDict(  # type: ignore[attr-defined]
            (names.get(name, name), version) for name, version in plain
        )
    return renamed


def _note(weights: Weights, dropped: list[str], added: list[str]) -> str:
    if not dropped:
        return f"the architecture's names have {_listed(added)} inside, the file's do not: matched without"
    count = sum(any(wrapper in name.split(".")[:-1] for wrapper in dropped) for name in weights)
    return f"removed the wrapper names {_listed(dropped)} inside {count_of(count, 'key')}"


def _listed(wrappers: list[str]) -> str:
    return ", ".join(f"'{wrapper}.'" for wrapper in wrappers)
