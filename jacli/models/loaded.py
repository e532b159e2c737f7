"""Request to, and result of, a model loader."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from jacli.errors import UsageError
from jacli.models.hooks import drop_backward_hooks
from jacli.options.table import flag_of

if TYPE_CHECKING:
    import torch


_ABOUT_WEIGHTS = {"about": "weights"}
"""Of options that choose an architecture or a part of a checkpoint."""


@dataclass(frozen=True)
class ModelRequest:
    """The options of ``load_model``, see there."""

    arch: str | None = field(default=None, metadata=_ABOUT_WEIGHTS)
    arch_args: Mapping[str, object] = field(default_factory=dict)
    weights_key: str | None = field(default=None, metadata=_ABOUT_WEIGHTS)
    strip_prefix: str | None = field(default=None, metadata=_ABOUT_WEIGHTS)
    ema: bool | None = field(default=None, metadata=_ABOUT_WEIGHTS)
    allow_pickle: bool = False
    seed: int = 0
    dtype: torch.dtype | None = None
    """Of the module into which a file's weights are loaded; None: the file's own dtype."""
    ignore_extra_weights: bool = field(default=False, metadata=_ABOUT_WEIGHTS)

    def options_about_weights(self) -> list[str]:
        """The options given that choose an architecture or a part of a checkpoint, as typed."""
        asked = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata == _ABOUT_WEIGHTS}
        usual = ModelRequest()
        return [flag_of(name, value) for name, value in asked.items() if value != getattr(usual, name)]


@dataclass(frozen=True)
class LoadedModel:
    """A frozen network and where it came from.

    Attributes:
        module: On the CPU, in eval mode where the format knows one, no parameter requires a gradient,
            floating types as in the file.
        format: ``torchscript``, ``state_dict``, ``checkpoint``, ``safetensors``, ``torch_export``,
            ``pickled_module`` or ``architecture``.
        path: Absolute; None for an architecture's name.
        sha256: Of the file.
        arch: The architecture as resolved, such as ``torchvision:resnet18``; None for programs.
        arch_sha256: Of the architecture's source file, where it is the user's own.
        notes: What the user must be told.
        static_batch: The only batch size that an exported program accepts; None where it accepts any.
        built_dtypes: Those that the architecture gave its parameters and buffers, by name, before it took
            over the file's; empty for programs and pickled modules.
        weights_sha256: Of the parameters and buffers that an architecture without a file came with.
        source: MODEL as it was given.
        request: Loads the same again without searching: architecture, key and prefix as they were found.
    """

    module: torch.nn.Module
    format: str
    path: str | None
    sha256: str | None
    arch: str | None = None
    arch_sha256: str | None = None
    notes: tuple[str, ...] = ()
    static_batch: int | None = None
    built_dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    weights_sha256: str | None = None
    source: str = ""
    request: ModelRequest | None = None


def refuse_weight_options(path: Path, kind: str, request: ModelRequest) -> None:
    """A file that is a whole program has no use for --arch and the like; ignoring them would mislead.

    >>> refuse_weight_options(Path("net.pt"), "TorchScript archive", ModelRequest(arch="resnet18"))
    Traceback (most recent call last):
        ...
    jacli.errors.UsageError: --arch: not for net.pt.
    It is a TorchScript archive, which brings its own architecture and weights.
    Leave these options out.
    """
    given = request.options_about_weights() + (["--arch-arg"] if request.arch_args else [])
    if given:
        raise UsageError(
            f"{', '.join(given)}: not for {path}.",
            why=f"It is a {kind}, which brings its own architecture and weights.",
            hint="Leave these options out.",
        )


def freeze(module: torch.nn.Module) -> torch.nn.Module:
    """Evaluation mode, no gradients of parameters, no hooks on gradients; in place.

    Frozen parameters make ``output.requires_grad`` an honest test of whether the output depends on
    the input differentiably.

    >>> import torch
    >>> layer = freeze(torch.nn.Linear(3, 2))
    >>> layer.training, layer.weight.requires_grad
    (False, False)
    """
    # Modules of torch.export refuse eval(): their mode was settled when they were exported.
    with suppress(NotImplementedError):
        module.eval()
    drop_backward_hooks(module)
    for parameter in module.parameters():  # ScriptModules refuse requires_grad_()
        parameter.requires_grad_(False)
    return module


def sha256_of(path: Path) -> str:
    """Hex digest of the file, read in a stream.

    >>> len(sha256_of(Path("sample_models/digits_cnn.pt")))
    64
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
