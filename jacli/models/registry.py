"""Which of torchvision's architectures has these names and shapes?

The builders run with tensors that have shapes but no memory, and nothing is downloaded.  About 110
architectures take 4 s to build so, which is too long; but those of one family (one module of
torchvision) share the names of their top-level children, so one of each family is built first.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from jacli.errors import ModelError
from jacli.models.damage import last_line
from jacli.models.prefixes import (
    Shapes,
    head_sizes,
    prefixes_to_try,
    shapes_of,
    under_prefix,
    without_counters,
)
from jacli.models.torchvision_import import import_torchvision
from jacli.models.weights import Weights

_CLASSIFIER_DEPTH = 2  # dots in torchvision.models.resnet; torchvision.models.detection.fcos has more


@dataclass(frozen=True)
class Match:
    """An architecture, the prefix to remove, and the number of classes where it is not the default."""

    name: str
    prefix: str
    num_classes: int | None


def recognise_architecture(weights: Weights, *, path: Path, strip_prefix: str | None = None) -> Match:
    """The one architecture of torchvision that these weights fit.

    >>> from jacli.models import load_model
    >>> weights = load_model("sample_models/digits_shufflenet.safetensors").module.state_dict()
    >>> recognise_architecture(weights, path=Path("net.safetensors")).name
    'shufflenet_v2_x0_5'

    Raises:
        ModelError: None fits, or several do.
    """
    shapes = shapes_of(weights)
    try:
        matches = matching_architectures(weights, strip_prefix)
    except (ImportError, RuntimeError) as error:
        raise _needs_arch(path, shapes, f"torchvision cannot be imported: {last_line(error)}") from error
    if not matches:
        raise _needs_arch(path, shapes, "no architecture of torchvision has these names and shapes")
    names = sorted({match.name for match in matches})
    if len(names) > 1:
        raise ModelError(
            f"The weights of {path} fit several architectures.",
            why=f"They are: {', '.join(f'torchvision:{name}' for name in names)}.",
            hint=f"Name one: --arch torchvision:{names[0]}.",
        )
    if len(matches) > 1:
        raise ModelError(
            f"{path} holds several sets of weights for torchvision:{names[0]}.",
            why=f"They differ in the prefix of their names: {', '.join(match.prefix for match in matches)}.",
            hint=f"Name one: --strip-prefix {matches[0].prefix}",
        )
    return matches[0]


def matching_architectures(weights: Weights, strip_prefix: str | None = None) -> list[Match]:
    """Every architecture and prefix that fit in names and shapes; without a prefix, if that fits.

    BatchNorm's counters may be missing, and the number of classes is the file's.

    >>> from jacli.models import load_model
    >>> weights = load_model("sample_models/digits_shufflenet.safetensors").module.state_dict()
    >>> [(match.name, match.num_classes) for match in matching_architectures(weights)]
    [('shufflenet_v2_x0_5', 10)]
    """
    prefixes = prefixes_to_try(weights, strip_prefix)
    parts = {prefix: shapes_of(under_prefix(weights, prefix)) for prefix in prefixes}
    matches: list[Match] = []
    top_levels = {prefix: _top_level(part) for prefix, part in parts.items()}
    for module, names in _families().items():
        first = _architecture_shapes(names[0])
        # Classifiers of one family share their first tensor's name as well; detectors differ by backbone.
        required = next(iter(first), "") if module.count(".") == _CLASSIFIER_DEPTH else None
        tops = _top_level(first)
        for prefix, part in parts.items():
            if top_levels[prefix] == tops and (required is None or required in part):
                matches += [match for name in names if (match := _match(name, prefix, part)) is not None]
    return [match for match in matches if not match.prefix] or matches


def _match(name: str, prefix: str, part: Shapes) -> Match | None:
    expected = _architecture_shapes(name)
    if without_counters(expected) == without_counters(part):
        return Match(name, prefix, None)
    for size in head_sizes(expected, part):
        if without_counters(_architecture_shapes(name, size)) == without_counters(part):
            return Match(name, prefix, size)
    return None


def _top_level(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.split(".", 1)[0] for name in names)


@functools.cache
def _families() -> dict[str, list[str]]:
    """Module of torchvision -> its architectures; quantised twins, of the same names and shapes, left out."""
    models = import_torchvision().models
    families: defaultdict[str, list[str]] = defaultdict(list)
    for name in models.list_models():
        if not name.startswith("quantized_"):
            families[models.get_model_builder(name).__module__].append(name)
    return dict(families)


@functools.cache
def _architecture_shapes(name: str, num_classes: int | None = None) -> Shapes:
    """Names and shapes of a network's tensors; empty where it cannot be built with that number of classes."""
    builder = import_torchvision().models.get_model_builder(name)
    accepted = inspect.signature(builder).parameters
    arguments: dict[str, Any] = {key: None for key in ("weights", "weights_backbone") if key in accepted}
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        # The meta device is the fastest throughout.  RegNet's builders read numbers off small tensors,
        # which must be real then.
        for device in (torch.device("meta"), torch.device("cpu")):
            try:
                with device, _ShapesOnly():
                    return shapes_of(builder(**arguments).state_dict())
            except Exception:
                continue  # an architecture that cannot be built so cannot be recognised; the others can
    return {}


class _ShapesOnly(TorchFunctionMode):
    """Parameters, which torch.nn makes with ``torch.empty``, get no memory and are not initialised."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        elif getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _needs_arch(path: Path, shapes: Shapes, why: str) -> ModelError:
    first = ", ".join(f"{name} {list(shape)}" for name, shape in list(shapes.items())[:4])
    return ModelError(
        f"{path} needs --arch.",
        why=f"It holds only weights (numbers, no network), and {why}. It starts with: {first}.",
        hint="Name the network: --arch path/file.py:callable, package.module:callable or timm:NAME.",
    )
