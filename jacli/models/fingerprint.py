"""Fingerprint of a module's weights, for networks that no file is the source of."""

from __future__ import annotations

import hashlib

import torch
from torch.nn.parameter import is_lazy

from jacli.errors import ModelError


def weights_sha256(module: torch.nn.Module) -> str:
    """Hex digest of a module's parameters and buffers, with their names, dtypes and shapes.

    Of lazy layers, which have no values before the first call, only the names and dtypes count.

    >>> layer = torch.nn.Linear(3, 2)
    >>> before = weights_sha256(layer)
    >>> _ = torch.nn.init.zeros_(layer.bias)
    >>> weights_sha256(layer) == before
    False

    Cost: every tensor is read once.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(named_tensors(module).items()):
        digest.update(f"{name} {tensor.dtype} ".encode())
        if is_lazy(tensor):
            continue
        plain = tensor.detach()
        values = (plain.dequantize() if plain.is_quantized else plain.to_dense()).cpu().contiguous()
        digest.update(f"{tuple(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def named_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, persistent or not.

    >>> sorted(named_tensors(torch.nn.BatchNorm1d(3)))
    ['bias', 'num_batches_tracked', 'running_mean', 'running_var', 'weight']
    """
    return dict((*module.named_parameters(), *module.named_buffers()))


def require_values(module: torch.nn.Module, source: str) -> torch.nn.Module:
    """The module itself, once every parameter and buffer is found to have values.

    >>> require_values(torch.nn.LazyLinear(3), "net.py:Net")
    Traceback (most recent call last):
        ...
    jacli.errors.ModelError: net.py:Net has lazy layers without weights.
    Uninitialised until a first call: weight, bias.
    Give the file of its weights, or call the network once on an example input in the function that builds
        it.

    Raises:
        ModelError: Lazy layers wait for a first call, which would give them random weights.
    """
    lazy = [name for name, tensor in named_tensors(module).items() if is_lazy(tensor)]
    if lazy:
        raise ModelError(
            f"{source} has lazy layers without weights.",
            why=f"Uninitialised until a first call: {', '.join(lazy[:3])}{', ...' if len(lazy) > 3 else ''}.",
            hint="Give the file of its weights, or call the network once on an example input "
            "in the function that builds it.",
        )
    return module
