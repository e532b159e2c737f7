"""Which tensors of a checkpoint are the network's weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jacli.errors import ModelError
from jacli.models.stand_ins import Inert

Weights = Mapping[str, torch.Tensor]

USUAL_KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")
_USUAL = re.compile(rf"^({'|'.join(USUAL_KEYS)}|state_?dict|.*_state_dict)$")
_NOT_WEIGHTS = re.compile(
    r"optim|sched|scaler|callback|loops|hyper_param|hparams|config|^args$|rng|sampler|loss|criterion|metric|history"
)
_EMA = re.compile(r"(^|_)(ema|averaged|shadow|swa)(_|$)")
_LEVELS = 3


@dataclass(frozen=True)
class Selection:
    """Weights and where they were found.

    Attributes:
        key: Dotted path in the container; empty where the container itself is the weights.
        weights: Name -> tensor; or, where a pickled object stands in their place, the object: an
            ``Inert``, or the module itself once it has been unpickled.
        notes: What the user must be told about the choice.
    """

    key: str
    weights: Any
    notes: tuple[str, ...] = ()


def select_weights(container: Any, *, path: Path, weights_key: str | None, ema: bool | None) -> Selection:
    """Find the weights: the container itself, the entry asked for, or the one entry that can be meant.

    >>> checkpoint = {"epoch": 3, "state_dict": torch.nn.Linear(3, 2).state_dict()}
    >>> select_weights(checkpoint, path=Path("net.ckpt"), weights_key=None, ema=None).key
    'state_dict'

    Raises:
        ModelError: There are none, several candidates, or no entry of that name.
    """
    key = ""
    if weights_key is not None:
        key, container = weights_key, _entry_at(container, weights_key, path)
    if is_state_dict(container) or _is_object(container):
        if ema:
            raise _no_average(path, [])
        return Selection(key, container)
    candidates = [(f"{key}.{below}" if key else below, value) for below, value in _candidates(container)]
    if not candidates:
        tensors = _tensors_of_mixed(container)
        if tensors:
            return Selection(key, tensors, ("entries that are no tensors were left aside",))
        raise ModelError(
            f"{path} holds no weights.",
            why=_says_what_is_there(container),
            hint="Give a file with a state dict in it.",
        )
    return _choose(candidates, path, ema)


def is_state_dict(value: object) -> bool:
    """Whether this is a mapping of names to tensors (and of ``_extra_state`` entries).

    >>> is_state_dict(torch.nn.Linear(3, 2).state_dict()), is_state_dict({"epoch": 3})
    (True, False)
    """
    return (
        isinstance(value, Mapping)
        and any(isinstance(v, torch.Tensor) for v in value.values())
        and all(isinstance(k, str) for k in value)
        and all(isinstance(v, torch.Tensor) or k.endswith("_extra_state") for k, v in value.items())
    )


def _is_object(value: object) -> bool:
    return isinstance(value, (Inert, torch.nn.Module))


def _candidates(container: Any) -> Iterator[tuple[str, Any]]:
    """State dicts below the container, and pickled objects under the usual names; depth first.

    A mapping that a level holds several times is looked through once: shared parts would be followed again
    and again.
    """
    seen: set[tuple[int, int]] = set()
    state_dicts: dict[int, bool] = {}
    rest: list[tuple[str, str, int, Any]] = [("", "", 0, container)]
    while rest:
        dotted, last, level, value = rest.pop()
        if id(value) not in state_dicts:
            state_dicts[id(value)] = is_state_dict(value)
        if level and state_dicts[id(value)]:
            yield dotted, value
        elif level and _is_object(value):
            if _USUAL.match(last) or _EMA.search(last):
                yield dotted, value
        elif level < _LEVELS and isinstance(value, Mapping) and (id(value), level) not in seen:
            seen.add((id(value), level))
            rest.extend(
                (f"{dotted}.{key}" if dotted else key, key, level + 1, part)
                for key, part in reversed(list(value.items()))
                if isinstance(key, str) and not _NOT_WEIGHTS.search(key.lower())
            )


def _choose(candidates: list[tuple[str, Any]], path: Path, ema: bool | None) -> Selection:
    # Objects count only where nothing readable is there: beside weights they are leftovers.
    candidates = [item for item in candidates if not _is_object(item[1])] or candidates
    averages = [item for item in candidates if any(_EMA.search(part) for part in item[0].split("."))]
    raw = [item for item in candidates if item not in averages]
    if ema:
        if not averages:
            raise _no_average(path, [key for key, _ in raw])
        key, value = _only(averages, path)
        return Selection(key, value, (f"used the averaged weights {key!r}",))
    if not raw:
        if ema is False:
            why = f"It holds only averaged weights: {', '.join(key for key, _ in averages)}."
            raise ModelError(f"{path} holds no raw weights.", why=why, hint="Leave out --no-ema.")
        key, value = _only(averages, path)
        return Selection(key, value, (f"used {key!r}, averaged weights: the file holds no others",))
    key, value = _only(raw, path)
    notes = [f"used weights {key!r}"]
    if averages:
        notes[0] += f"; an EMA copy {averages[0][0]!r} is there too (--ema)"
    others = [other for other, _ in raw if other != key]
    if others:
        notes.append(f"left aside the weights {', '.join(map(repr, others))} (--weights-key)")
    return Selection(key, value, tuple(notes))


def _only(candidates: list[tuple[str, Any]], path: Path) -> tuple[str, Any]:
    """The only candidate, or the only one with a usual name."""
    usual = [item for item in candidates if item[0].rpartition(".")[2] in USUAL_KEYS and "." not in item[0]]
    for items in (candidates, usual):
        if len(items) == 1:
            return items[0]
    keys = ", ".join(key for key, _ in candidates)
    raise ModelError(
        f"{path} holds several sets of weights.",
        why=f"Each of these could be meant: {keys}.",
        hint=f"Name one: --weights-key {candidates[0][0]}.",
    )


def _entry_at(container: Any, dotted: str, path: Path) -> Any:
    """The entry at a dotted path; keys may have dots themselves, so the longest that fits is taken."""
    value, rest = container, dotted.split(".")
    while rest:
        for length in range(len(rest), 0, -1):
            key = ".".join(rest[:length])
            if isinstance(value, Mapping) and key in value:
                value, rest = value[key], rest[length:]
                break
        else:
            raise ModelError(
                f"{path} has no entry {dotted!r}.",
                why=_says_what_is_there(value),
                hint="Correct --weights-key, or leave it out.",
            )
    return value


def _tensors_of_mixed(container: Any) -> dict[str, torch.Tensor]:
    """The tensors of a flat mapping that also holds numbers; only if they look like parameters' names."""
    if not isinstance(container, Mapping):
        return {}
    tensors = {k: v for k, v in container.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    return tensors if any("." in name for name in tensors) else {}


def _no_average(path: Path, keys: list[str]) -> ModelError:
    why = f"Its weights are: {', '.join(keys)}." if keys else "It is a single state dict."
    return ModelError(f"{path} holds no averaged (EMA) weights.", why=why, hint="Leave out --ema.")


def _says_what_is_there(value: Any) -> str:
    if isinstance(value, Mapping):
        keys = [str(key) for key in value]
        return (
            f"Its entries are: {', '.join(keys[:20])}{', ...' if len(keys) > 20 else ''}."
            if keys
            else "It is empty."
        )
    return f"It holds an object of type {type(value).__name__}."
