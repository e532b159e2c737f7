"""Weights into an architecture: prefixes, the number of classes, strict loading."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from jacli.dtypes import as_dtype, convert, holds, real_dtype, real_dtypes, widest
from jacli.errors import ModelError, UsageError
from jacli.models.architecture import Architecture, build, resolve_architecture
from jacli.models.fingerprint import named_tensors
from jacli.models.loaded import LoadedModel, ModelRequest, freeze, sha256_of
from jacli.models.prefixes import candidate_prefixes, head_sizes, modern_names, shapes_of, under_prefix
from jacli.models.registry import recognise_architecture
from jacli.models.weights import Selection, Weights


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
    strip_prefix = request.strip_prefix
    weights = selection.weights
    if request.arch is None:
        if arch_args:
            raise UsageError(
                "--arch-arg needs --arch.",
                why=f"Nothing says to which architecture {', '.join(arch_args)} belongs.",
                todo="Add --arch.",
            )
        weights = modern_names(weights)
        match = recognise_architecture(weights, path=path, strip_prefix=strip_prefix)
        architecture = resolve_architecture(f"torchvision:{match.name}")
        strip_prefix = match.prefix if strip_prefix is None and match.prefix else strip_prefix
        classes = "" if match.num_classes is None else f" (num_classes={match.num_classes})"
        arch_args = {} if match.num_classes is None else {"num_classes": match.num_classes}
        notes.append(f"recognised as torchvision:{match.name}{classes}")
    else:
        architecture = resolve_architecture(request.arch)
        if architecture.label.startswith("torchvision:densenet"):
            weights = modern_names(weights)
    fit = fit_weights(
        architecture, arch_args, weights, path=path, strip_prefix=strip_prefix, dtype=request.dtype
    )
    found = replace(
        request,
        arch=request.arch or architecture.label,
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
        request=found,
    )


def fit_weights(
    architecture: Architecture,
    arch_args: Mapping[str, object],
    weights: Weights,
    *,
    path: Path,
    strip_prefix: str | None,
    dtype: torch.dtype | None = None,
) -> Fit:
    """Load the weights strictly, without the prefix that makes that possible.

    The module's tensors take over the file's dtypes, or ``dtype`` where that is given.

    ``load_state_dict(strict=True)`` is the judge, not a comparison of key sets: files of PyTorch 0.3
    lack BatchNorm's ``num_batches_tracked`` and load strictly all the same, and modules may rename keys.

    Cost: one trial load a prefix of the names; the first one, without a prefix, nearly always fits.
    """
    prefixes = candidate_prefixes(weights) if strip_prefix is None else [strip_prefix]
    if strip_prefix is not None and not under_prefix(weights, strip_prefix):
        raise ModelError(
            f"{path} has no tensor below the prefix {strip_prefix!r}.",
            why=f"Its names start with: {', '.join(candidate_prefixes(weights)[1:9] or list(weights)[:4])}.",
            todo="Correct --strip-prefix (it ends with its dot), or leave it out.",
        )
    module = build(architecture, arch_args)
    fitting = _fitting_prefixes(module, weights, prefixes)
    notes: list[str] = []
    if not fitting and architecture.takes_num_classes and "num_classes" not in arch_args:
        for prefix, size in _head_candidates(module, weights, prefixes):
            resized = build(architecture, {**arch_args, "num_classes": size})
            if _strict_load_error(resized, under_prefix(weights, prefix)) is None:
                module, fitting = resized, [prefix]
                arch_args = {**arch_args, "num_classes": size}
                notes.append(f"num_classes={size} taken from the file")
                break
    if not fitting:
        raise _does_not_fit(path, architecture, module, weights, prefixes)
    if len(fitting) > 1:
        raise ModelError(
            f"{path} holds several sets of weights that fit {architecture.label}.",
            why=f"They differ in the prefix of their names: {', '.join(fitting)}.",
            todo=f"Name one: --strip-prefix {fitting[0]}",
        )
    part = under_prefix(weights, fitting[0])
    built = {name: tensor.dtype for name, tensor in named_tensors(module).items()}
    if dtype is None:
        _adopt_dtypes(module, part)
    else:
        convert(module, dtype)
    module.load_state_dict(part, strict=True)
    return Fit(module, (*notes, *_prefix_notes(weights, fitting[0])), arch_args, fitting[0], built)


def _fitting_prefixes(module: torch.nn.Module, weights: Weights, prefixes: list[str]) -> list[str]:
    fitting: list[str] = []
    for prefix in prefixes:
        if _strict_load_error(module, under_prefix(weights, prefix)) is None:
            fitting.append(prefix)
            if prefix == "":
                break
    return fitting


def _strict_load_error(module: torch.nn.Module, part: Weights) -> str | None:
    if (lost := _lost_values(module, part)) is not None:
        return lost
    try:
        module.load_state_dict(part, strict=True)
    except Exception as error:  # modules' own hooks raise anything
        return str(error) or type(error).__name__
    return None


def _head_candidates(module: torch.nn.Module, weights: Weights, prefixes: list[str]) -> list[tuple[str, int]]:
    expected = shapes_of(module.state_dict())
    return [
        (prefix, size)
        for prefix in prefixes
        for size in head_sizes(expected, shapes_of(under_prefix(weights, prefix)))
    ]


def _adopt_dtypes(module: torch.nn.Module, part: Weights) -> None:
    """Give the module's tensors the dtypes that the file has, so that loading rounds nothing.

    Tensors that are narrower than the module's widest are so on purpose (a layer in half precision): they
    keep their dtype, as in `torch.nn.Module.load_state_dict`.
    """
    own = real_dtypes(module)
    given = {kind for tensor in part.values() if (kind := _kind(tensor)) is not None}
    if not own or not given:
        return
    if len(given) == 1 and holds(widest(given), widest(own)):
        convert(module, widest(given), only={widest(own)})  # exact, also of buffers not in the file
        return
    for name, tensor in module.state_dict(keep_vars=True).items():
        kind = _kind(part.get(name))
        if kind is not None and _kind(tensor) == widest(own):
            tensor.data = as_dtype(tensor.data, kind)


def _lost_values(module: torch.nn.Module, part: Weights) -> str | None:
    """Name a tensor of the file whose imaginary parts or fractions `load_state_dict` would drop."""
    for name, tensor in module.state_dict().items():
        given = part.get(name)
        if not isinstance(tensor, torch.Tensor) or not isinstance(given, torch.Tensor):
            continue
        found = None
        if given.is_complex() and not tensor.is_complex():
            found = "is complex" if bool(torch.count_nonzero(given.imag)) else None
        elif given.is_floating_point() and _kind(tensor) is None:
            whole = torch.equal(given.to(tensor.dtype).to(given.dtype), given)
            found = None if whole else "has fractions"
        if found is not None:
            dtype = str(tensor.dtype).removeprefix("torch.")
            return f"{name} {found} in the file, and is {dtype} in the architecture."
    return None


def _kind(value: object) -> torch.dtype | None:
    return real_dtype(value) if isinstance(value, torch.Tensor) else None


def _prefix_notes(weights: Weights, prefix: str) -> list[str]:
    if not prefix:
        return []
    count = sum(name.startswith(prefix) for name in weights)
    notes = [f"removed the prefix {prefix!r} from {count} keys"]
    aside = OrderedDict(
        (name.split(".")[0] + (".*" if "." in name else ""), None)
        for name in weights
        if not name.startswith(prefix)
    )
    if aside:
        names = list(aside)
        listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        notes.append(f"left aside {len(weights) - count} keys: {listed}")
    return notes


def _does_not_fit(
    path: Path, architecture: Architecture, module: torch.nn.Module, weights: Weights, prefixes: list[str]
) -> ModelError:
    """The error that names what disagrees, under the prefix that agrees best."""
    expected = shapes_of(module.state_dict())
    parts = {prefix: shapes_of(under_prefix(weights, prefix)) for prefix in prefixes}
    prefix = max(
        parts,
        key=lambda p: (len(parts[p].items() & expected.items()), len(parts[p].keys() & expected.keys())),
    )
    part = parts[prefix]
    groups: list[tuple[str, list[str]]] = [
        (
            "missing in the file",
            [k for k in expected if k not in part and not k.endswith("num_batches_tracked")],
        ),
        ("not in the architecture", [k for k in part if k not in expected]),
        (
            "of another shape",
            [
                f"{k} (file {_times(part[k])}, architecture {_times(expected[k])})"
                for k in part
                if expected.get(k, part[k]) != part[k]
            ],
        ),
    ]
    said = [
        f"{len(names)} {what}: {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
        for what, names in groups
        if names
    ]
    if said:
        why = f"Tensors {'; '.join(said)}."
    else:  # names and shapes agree, so a module's own loading code objected
        error = _strict_load_error(module, under_prefix(weights, prefix)) or ""
        why = error.strip().rpartition("\n")[2].strip()
    without = f" (without the prefix {prefix!r})" if prefix else ""
    return ModelError(
        f"The weights of {path} do not fit {architecture.label}{without}.",
        why=why,
        todo="Give the architecture they were trained with (--arch, --arch-arg), "
        "or the right part of the file (--weights-key, --strip-prefix).",
    )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
