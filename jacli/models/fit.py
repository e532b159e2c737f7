"""Weights into an architecture: prefixes, the number of classes, strict loading."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from jacli.errors import ModelError, UsageError
from jacli.errors.printable import count_of
from jacli.models.architecture import (
    Architecture,
    build,
    candidate_architectures,
    resolve_architecture,
)
from jacli.models.dtypes import as_dtype, convert, holds, real_dtype, real_dtypes, widest
from jacli.models.fingerprint import named_tensors
from jacli.models.loaded import LoadedModel, ModelRequest, freeze, sha256_of
from jacli.models.misfit import misfit
from jacli.models.names import split_name
from jacli.models.prefixes import (
    candidate_prefixes,
    head_sizes,
    modern_names,
    prefixes_to_try,
    shapes_of,
    without_names,
)
from jacli.models.registry import recognise_architecture
from jacli.models.spelling import Spelling, spellings, strip_prefix_of, with_shared
from jacli.models.weights import Selection, Weights


@dataclass(frozen=True)
class Part:
    """Tensors of a file that a module takes strictly.

    Attributes:
        prefix: Removed from the names.
        weights: The tensors, under the module's names.
        notes: What the user must be told.
    """

    prefix: str
    weights: Weights
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Fit:
    """A module that took its weights strictly, and how.

    Attributes:
        module: The module.
        notes: What the user must be told.
        arch_args: What the architecture was built with.
        prefix: Removed from the names.
        built_dtypes: See `LoadedModel`.
    """

    module: torch.nn.Module
    notes: tuple[str, ...]
    arch_args: Mapping[str, object]
    prefix: str
    built_dtypes: Mapping[str, torch.dtype]


def load_weights(path: Path, selection: Selection, request: ModelRequest, *, file_format: str) -> LoadedModel:
    """Build the architecture asked for, or recognised in torchvision's registry, with these weights.

    Raises:
        ModelError: No architecture fits, or several do, or the weights do not load strictly.
        UsageError: The architecture does not take the arguments given.
    """
    notes = list(selection.notes)
    arch_args = dict(request.arch_args)
    weights = selection.weights
    strip_prefix = strip_prefix_of(weights, request.strip_prefix)
    if request.arch is None:
        if request.ignore_extra_weights:
            raise UsageError(
                "--ignore-extra-weights needs --arch.",
                why="Without --arch, jacli recognises an architecture by all names in the file.",
                hint="Add --arch.",
            )
        if arch_args:
            raise UsageError(
                "--arch-arg needs --arch.",
                why=f"Nothing says to which architecture {', '.join(arch_args)} belongs.",
                hint="Add --arch.",
            )
        weights = modern_names(weights)
        match = recognise_architecture(weights, path=path, strip_prefix=strip_prefix)
        candidates = [resolve_architecture(f"torchvision:{match.name}")]
        strip_prefix = match.prefix if strip_prefix is None and match.prefix else strip_prefix
        classes = "" if match.num_classes is None else f" (num_classes={match.num_classes})"
        arch_args = {} if match.num_classes is None else {"num_classes": match.num_classes}
        notes.append(f"recognised as torchvision:{match.name}{classes}")
    else:
        candidates = candidate_architectures(request.arch)
        if candidates[0].label.startswith("torchvision:densenet"):
            weights = modern_names(weights)
    fit_to = partial(
        fit_weights,
        arch_args=arch_args,
        weights=weights,
        path=path,
        strip_prefix=strip_prefix,
        dtype=request.dtype,
        ignore_extra=request.ignore_extra_weights,
    )
    architecture, fit = _the_fitting_one(path, request.arch or "", candidates, fit_to)
    if request.arch is not None and not split_name(request.arch)[1]:
        notes.append(f"took {architecture.label}, which the weights fit")
    settled_request = replace(
        request,
        arch=architecture.name or request.arch or architecture.label,
        arch_args=fit.arch_args,
        weights_key=selection.key or None,
        ema=None,
        strip_prefix=fit.prefix,
    )
    return LoadedModel(
        freeze(fit.module),
        file_format,
        str(path),
        sha256_of(path),
        arch=architecture.label,
        arch_sha256=architecture.sha256,
        notes=(*notes, *architecture.notes, *fit.notes),
        built_dtypes=fit.built_dtypes,
        request=settled_request,
    )


def _the_fitting_one(
    path: Path, asked: str, candidates: list[Architecture], fit_to: Callable[[Architecture], Fit]
) -> tuple[Architecture, Fit]:
    """The one architecture of some that takes the weights.

    Raises:
        ModelError: None does, or several do.
    """
    if len(candidates) == 1:
        return candidates[0], fit_to(candidates[0])
    fitting: list[tuple[Architecture, Fit]] = []
    reasons: list[str] = []
    for candidate in candidates:
        try:
            fitting.append((candidate, fit_to(candidate)))
        except (ModelError, UsageError) as error:
            reasons.append(f"{candidate.name.rpartition(':')[2]}: {error.reason}")
    if len(fitting) == 1:
        return fitting[0]
    names = [one.name.rpartition(":")[2] for one in ([one for one, _ in fitting] or candidates)]
    raise ModelError(
        f"{'Several' if fitting else 'None'} of the networks in {asked} "
        f"{'take' if fitting else 'takes'} the weights of {path}.",
        why=f"They are: {', '.join(names)}." if fitting else f"{'; '.join(reasons)}.",
        hint=f"Name the one that was trained: --arch {asked.rstrip(':')}:{names[0]}, with its --arch-arg.",
    )


def fit_weights(
    architecture: Architecture,
    arch_args: Mapping[str, object],
    weights: Weights,
    *,
    path: Path,
    strip_prefix: str | None,
    dtype: torch.dtype | None = None,
    ignore_extra: bool = False,
) -> Fit:
    """Load the weights strictly, without the prefix that makes that possible.

    Names of wrappers inside the keys are dropped where the names then fit, and a tensor that shares its
    memory with one of the file counts as present.  ``ignore_extra`` leaves aside what the architecture lacks.

    The module's tensors take over the file's dtypes, or ``dtype`` where that is given.

    ``load_state_dict(strict=True)`` is the judge, not a comparison of key sets: files of PyTorch 0.3
    lack BatchNorm's ``num_batches_tracked`` and load strictly all the same, and modules may rename keys.

    Cost: one trial load a prefix of the names; the first one, without a prefix, nearly always fits.
    """
    module = build(architecture, arch_args)
    if strip_prefix is not None and not any(s.part(strip_prefix) for s in spellings(weights, module)):
        raise ModelError(
            f"{path} has no tensor below the prefix {strip_prefix!r}.",
            why=f"Its names start with: {', '.join(candidate_prefixes(weights)[1:9] or list(weights)[:4])}.",
            hint="Correct --strip-prefix, or leave it out.",
        )
    fitting = _fitting_parts(module, weights, strip_prefix, ignore_extra=False)
    notes: list[str] = []
    if not fitting and architecture.takes_num_classes and "num_classes" not in arch_args:
        for size in _head_candidates(module, weights, strip_prefix):
            resized = build(architecture, {**arch_args, "num_classes": size})
            if fitting := _fitting_parts(resized, weights, strip_prefix, ignore_extra=False)[:1]:
                module = resized
                arch_args = {**arch_args, "num_classes": size}
                notes.append(f"num_classes={size} taken from the file")
                break
    if not fitting and ignore_extra:
        fitting = _fitting_parts(module, weights, strip_prefix, ignore_extra=True)
    if not fitting:
        raise misfit(path, architecture.label, module, weights, strip_prefix, _strict_load_error)
    if len(fitting) > 1:
        raise ModelError(
            f"{path} holds several sets of weights that fit {architecture.label}.",
            why=f"They differ in the prefix of their names: {', '.join(part.prefix for part in fitting)}.",
            hint=f"Name one: --strip-prefix {fitting[0].prefix}",
        )
    part = fitting[0]
    built = {name: tensor.dtype for name, tensor in named_tensors(module).items()}
    if dtype is None:
        _adopt_dtypes(module, part.weights)
    else:
        convert(module, dtype)
    module.load_state_dict(part.weights, strict=True)
    return Fit(module, (*notes, *part.notes), arch_args, part.prefix, built)


def _fitting_parts(
    module: torch.nn.Module, weights: Weights, strip_prefix: str | None, *, ignore_extra: bool
) -> list[Part]:
    """Every prefix without which the names fit, in the first spelling that has one; only '' if that fits."""
    expected = module.state_dict(keep_vars=True)
    for spelling in spellings(weights, module):
        fitting: list[Part] = []
        for prefix in prefixes_to_try(spelling.weights, strip_prefix):
            part = _fitting_part(module, expected, spelling, prefix, ignore_extra=ignore_extra)
            if part is not None:
                fitting.append(part)
                if prefix == "":
                    break
        if fitting:
            return fitting
    return []


def _fitting_part(
    module: torch.nn.Module,
    expected: Mapping[str, torch.Tensor],
    spelling: Spelling,
    prefix: str,
    *,
    ignore_extra: bool,
) -> Part | None:
    """The tensors of the file that fit the module strictly, shared tensors filled in."""
    part = spelling.part(prefix)
    notes = [spelling.note] if spelling.note else []
    notes += _prefix_notes(spelling.weights, prefix)
    if _strict_load_error(module, part) is None:
        return Part(prefix, part, tuple(notes))
    part, shared = with_shared(expected, part)
    notes += shared
    extra: list[str] = []
    if ignore_extra and any(name in expected for name in part):
        part, extra = _without_extra(module, part)
        notes += _extra_notes(extra)
    if not shared and not extra:
        return None
    return Part(prefix, part, tuple(notes)) if _strict_load_error(module, part) is None else None


def _without_extra(module: torch.nn.Module, part: Weights) -> tuple[Weights, list[str]]:
    """The part without the tensors that the module does not take, and the names of these."""
    try:
        extra = set(module.load_state_dict(part, strict=False).unexpected_keys)
    except Exception:  # of another shape, or a module's own hook: the strict load says which
        return part, []
    return without_names(part, extra), [name for name in part if name in extra]


def _extra_notes(extra: list[str]) -> list[str]:
    if not extra:
        return []
    count = count_of(len(extra), "tensor")
    return [f"left aside {count} that the architecture does not have: {', '.join(extra)}"]


def _strict_load_error(module: torch.nn.Module, part: Weights) -> str | None:
    if (lost := _lost_values(module, part)) is not None:
        return lost
    try:
        module.load_state_dict(part, strict=True)
    except Exception as error:  # modules' own hooks raise anything
        return str(error) or type(error).__name__
    return None


def _head_candidates(module: torch.nn.Module, weights: Weights, strip_prefix: str | None) -> list[int]:
    tensors = module.state_dict(keep_vars=True)
    expected = shapes_of(tensors)
    sizes: dict[int, None] = {}
    for spelling in spellings(weights, module):
        for prefix in prefixes_to_try(spelling.weights, strip_prefix):
            part = shapes_of(with_shared(tensors, spelling.part(prefix))[0])
            sizes.update(dict.fromkeys(head_sizes(expected, part)))
    return list(sizes)


def _adopt_dtypes(module: torch.nn.Module, part: Weights) -> None:
    """Give the module's tensors the dtypes that the file has, so that loading rounds nothing.

    Tensors that are narrower than the module's widest are so on purpose (a layer in half precision): they
    keep their dtype, as in `torch.nn.Module.load_state_dict`.
    """
    own = real_dtypes(module)
    stored = {kind for tensor in part.values() if (kind := _kind(tensor)) is not None}
    if not own or not stored:
        return
    if len(stored) == 1 and holds(widest(stored), widest(own)):
        convert(module, widest(stored), only={widest(own)})  # exact, also of buffers not in the file
        return
    for name, tensor in module.state_dict(keep_vars=True).items():
        kind = _kind(part.get(name))
        if kind is not None and _kind(tensor) == widest(own):
            tensor.data = as_dtype(tensor.data, kind)


def _lost_values(module: torch.nn.Module, part: Weights) -> str | None:
    """Name a tensor of the file whose imaginary parts or fractions `load_state_dict` would drop."""
    for name, tensor in module.state_dict().items():
        stored = part.get(name)
        if not isinstance(tensor, torch.Tensor) or not isinstance(stored, torch.Tensor):
            continue
        loss = None
        if stored.is_complex() and not tensor.is_complex():
            loss = "is complex" if bool(torch.count_nonzero(stored.imag)) else None
        elif stored.is_floating_point() and _kind(tensor) is None:
            is_integral = torch.equal(stored.to(tensor.dtype).to(stored.dtype), stored)
            loss = None if is_integral else "has fractions"
        if loss is not None:
            dtype = str(tensor.dtype).removeprefix("torch.")
            return f"{name} {loss} in the file, and is {dtype} in the architecture."
    return None


def _kind(value: object) -> torch.dtype | None:
    return real_dtype(value) if isinstance(value, torch.Tensor) else None


def _prefix_notes(weights: Weights, prefix: str) -> list[str]:
    if not prefix:
        return []
    count = sum(name.startswith(prefix) for name in weights)
    notes = [f"removed the prefix {prefix!r} from {count_of(count, 'key')}"]
    aside = OrderedDict(
        (name.split(".")[0] + (".*" if "." in name else ""), None)
        for name in weights
        if not name.startswith(prefix)
    )
    if aside:
        names = list(aside)
        listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        notes.append(f"left aside {count_of(len(weights) - count, 'key')}: {listed}")
    return notes
