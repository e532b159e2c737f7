"""Weights that do not fit an architecture: what disagrees, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from jacli.errors import ModelError
from jacli.errors.printable import count_of
from jacli.models.prefixes import COUNTER, UNKNOWN, Shapes, prefixes_to_try, shapes_of, without_counters
from jacli.models.spelling import spellings, with_shared
from jacli.models.weights import Weights

_HINT = (
    "Give the architecture they were trained with (--arch, --arch-arg), "
    "or the right part of the file (--weights-key, --strip-prefix)."
)
_EXTRA = " If you know that the network needs none of these, leave them aside: --ignore-extra-weights."


def misfit(
    path: Path,
    label: str,
    module: torch.nn.Module,
    weights: Weights,
    strip_prefix: str | None,
    load_error: Callable[[torch.nn.Module, Weights], str | None],
) -> ModelError:
    """The error that names what disagrees, under the spelling and prefix that agree best.

    Args:
        path: The file.
        label: The architecture.
        module: Built from it.
        weights: Of the file.
        strip_prefix: The only prefix tried, if one was asked for.
        load_error: What strict loading says of a part of the weights.
    """
    expected = shapes_of(module.state_dict())
    prefix, part = max(
        _parts(module, weights, strip_prefix),
        key=lambda item: (
            len(shapes_of(item[1]).items() & expected.items()),
            len(item[1].keys() & expected.keys()),
        ),
    )
    stored = shapes_of(part)
    missing = [name for name in expected if name not in stored and not name.endswith(COUNTER)]
    extra = [name for name in stored if name not in expected]
    reshaped = [name for name in stored if expected.get(name, UNKNOWN) not in (UNKNOWN, stored[name])]
    where = _only_a_part(module, expected, stored)
    if where is not None:
        rest = [name for name in expected if not name.startswith(f"{where}.")]
        return ModelError(
            f"{path} holds the weights of only a part of {label}: {where}.",
            why=f"These are missing: {_listed(rest)}.",
            hint=f"Give that part as the architecture: --arch file.py:NAME, a function that returns "
            f"the network's {where}; or the file of the whole network.",
        )
    said = [
        f"{count_of(len(names), 'tensor')} {what}: {_listed(names)}"
        for what, names in (
            ("missing in the file", missing),
            ("not in the architecture", extra),
            (
                "of another shape",
                [
                    f"{name} (file {_times(stored[name])}, architecture {_times(expected[name])})"
                    for name in reshaped
                ],
            ),
        )
        if names
    ]
    if said:
        why = f"{'; '.join(said)}."
    else:  # names and shapes agree, so a module's own loading code objected
        why = (load_error(module, part) or "").strip().rpartition("\n")[2].strip()
    without = f" (without the prefix {prefix!r})" if prefix else ""
    only_extra = bool(extra) and not missing and not reshaped
    return ModelError(
        f"The weights of {path} do not fit {label}{without}.",
        why=why,
        hint=_HINT + (_EXTRA if only_extra else ""),
    )


def _parts(
    module: torch.nn.Module, weights: Weights, strip_prefix: str | None
) -> Iterator[tuple[str, Weights]]:
    tensors = module.state_dict(keep_vars=True)
    for spelling in spellings(weights, module):
        for prefix in prefixes_to_try(spelling.weights, strip_prefix):
            yield prefix, with_shared(tensors, spelling.part(prefix))[0]


def _only_a_part(module: torch.nn.Module, expected: Shapes, stored: Shapes) -> str | None:
    """The submodule whose tensors, all of them and no others, are there, under its name or without it."""
    stored = without_counters(stored)
    names: list[str] = [name for name, _ in module.named_modules()]
    for name in names:
        below = {key: shape for key, shape in expected.items() if name and key.startswith(f"{name}.")}
        below = without_counters(below)
        bare = {key.removeprefix(f"{name}."): shape for key, shape in below.items()}
        if below and stored in (below, bare) and len(below) < len(without_counters(expected)):
            return name
    return None


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
