"""safetensors files: a JSON header and raw tensors, nothing that could run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from jacli.models.damage import reading
from jacli.models.describe import describe_weights
from jacli.models.fit import load_weights
from jacli.models.loaded import LoadedModel, ModelRequest
from jacli.models.weights import Selection, select_weights
from jacli.untrusted.content import path_as_text

if TYPE_CHECKING:
    import torch


def load_safetensors(path: Path, request: ModelRequest) -> LoadedModel:
    """Load the weights into the architecture asked for or recognised.

    >>> load_safetensors(Path("sample_models/digits_shufflenet.safetensors"), ModelRequest()).arch
    'torchvision:shufflenet_v2_x0_5'
    """
    selection = select_weights(_read(path), path=path, weights_key=request.weights_key, ema=request.ema)
    return load_weights(path, selection, request, file_format="safetensors")


def describe_safetensors(path: Path) -> dict[str, Any]:
    """Tensors, types, prefix, matching architectures.

    >>> describe_safetensors(Path("sample_models/digits_shufflenet.safetensors"))["architectures"]
    ['torchvision:shufflenet_v2_x0_5']
    """
    return {"format": "safetensors", **describe_weights(Selection("", _read(path)))}


def _read(path: Path) -> dict[str, torch.Tensor]:
    with (
        reading(path, "safetensors file (damaged header, or truncated)"),
        path_as_text(path) as name,
        safe_open(name, "pt", device="cpu") as file,
    ):
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
