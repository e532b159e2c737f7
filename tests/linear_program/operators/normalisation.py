"""Normalisation, alone and beside layers into which its scales are folded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.linear_program.operators.case import Of, Operator

_KINDS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def batch_norm(channels: int, axes: int = 2, **options: Any) -> nn.Module:
    """With statistics and weights like those of a trained layer."""
    layer = _KINDS[axes](channels, **options)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.3, 2)
    if layer.affine:
        with torch.no_grad():
            layer.weight.normal_(1, 0.5)
            layer.bias.normal_()
    return layer


def trained(layer: nn.Module) -> nn.Module:
    """Weights that are not all one."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0.5, 1)
    return layer


def _chain(*layers: Any, shape: tuple[int, ...] = (3, 5, 4), **options: Any) -> Operator:
    return Operator(lambda: nn.Sequential(*(layer() for layer in layers)), shape, **options)


def _conv(channels: int = 3, out: int = 6, **options: Any) -> Any:
    return lambda: nn.Conv2d(channels, out, 3, padding=1, **options)


def _trained(kind: Any, *arguments: Any, shape: tuple[int, ...] = (6, 5, 4), **options: Any) -> Operator:
    return Operator(lambda: trained(kind(*arguments, **options)), shape)


class Instance(nn.InstanceNorm2d):
    """With running statistics, as some networks of style transfer have."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True, track_running_stats=True)
        self.running_mean.normal_()
        self.running_var.uniform_(0.3, 2)


NORMALISATIONS: dict[str, Operator] = {
    "batch norm of vectors": _chain(lambda: batch_norm(5, 0), shape=(5,)),
    "batch norm of sequences": _chain(lambda: batch_norm(5, 1), shape=(5, 4)),
    "batch norm of images": _chain(lambda: batch_norm(3)),
    "batch norm of volumes": _chain(lambda: batch_norm(3, 3), shape=(3, 5, 4, 6)),
    "batch norm without weights": _chain(lambda: batch_norm(3, affine=False)),
    "batch norm twice": _chain(lambda: batch_norm(3), lambda: batch_norm(3)),
    "batch norm after conv": _chain(_conv(bias=False), lambda: batch_norm(6)),
    "batch norm after conv with bias": _chain(_conv(), lambda: batch_norm(6)),
    "batch norm before conv": _chain(lambda: batch_norm(3), _conv()),
    "batch norm between convs": _chain(_conv(), lambda: batch_norm(6), _conv(6, 4)),
    "batch norm and relu before conv": _chain(lambda: batch_norm(3), nn.ReLU, _conv()),
    "batch norm after conv and relu": _chain(_conv(), nn.ReLU, lambda: batch_norm(6)),
    "batch norm of a depthwise conv": _chain(_conv(3, 6, groups=3), lambda: batch_norm(6)),
    "batch norm of a strided conv": _chain(
        lambda: nn.Conv2d(3, 6, 3, stride=2, bias=False), lambda: batch_norm(6), nn.ReLU, shape=(3, 7, 6)
    ),
    "batch norm of a transposed conv": _chain(
        lambda: nn.ConvTranspose2d(3, 6, 3, stride=2), lambda: batch_norm(6)
    ),
    "batch norm after linear": _chain(
        lambda: nn.Linear(5, 7), lambda: batch_norm(7, 0), nn.ReLU, lambda: nn.Linear(7, 4), shape=(5,)
    ),
    "batch norm of a conv with two readers": Operator(
        lambda: Of(lambda m, x: (y := m.conv(x)) + m.norm(y), conv=nn.Conv2d(3, 6, 3), norm=batch_norm(6))
    ),
    "batch norm with two readers": Operator(
        lambda: Of(
            lambda m, x: m.conv(y := m.norm(x)) + m.other(torch.relu(y)),
            conv=nn.Conv2d(3, 6, 3),
            other=nn.Conv2d(3, 6, 3),
            norm=batch_norm(3),
        )
    ),
    "batch norm into a max pool": _chain(lambda: batch_norm(3), lambda: nn.MaxPool2d(2), shape=(3, 7, 6)),
    "layer norm of vectors": _trained(nn.LayerNorm, 5, shape=(5,)),
    "layer norm of rows": _trained(nn.LayerNorm, 4, shape=(5, 4)),
    "layer norm of images": _trained(nn.LayerNorm, (3, 5, 4), shape=(3, 5, 4)),
    "layer norm without weights": Operator(lambda: nn.LayerNorm(4, elementwise_affine=False), (5, 4)),
    "layer norm without bias": _trained(nn.LayerNorm, 4, shape=(5, 4), bias=False),
    "layer norm over channels": Operator(
        lambda: Of(
            lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=trained(nn.LayerNorm(6))
        ),
        (6, 5, 4),
    ),
    "root mean square norm": _trained(nn.RMSNorm, 6, shape=(5, 6)),
    "group norm": _trained(nn.GroupNorm, 3, 6),
    "group norm of one group": _trained(nn.GroupNorm, 1, 6),
    "group norm of single channels": _trained(nn.GroupNorm, 6, 6),
    "group norm of sequences": _trained(nn.GroupNorm, 2, 6, shape=(6, 5)),
    "group norm without weights": Operator(lambda: nn.GroupNorm(2, 6, affine=False), (6, 5, 4)),
    "instance norm": Operator(lambda: nn.InstanceNorm2d(3)),
    "instance norm with weights": _trained(nn.InstanceNorm2d, 3, shape=(3, 5, 4), affine=True),
    "instance norm of sequences": Operator(lambda: nn.InstanceNorm1d(3), (3, 7)),
    "instance norm with running statistics": Operator(lambda: Instance(3)),
    "local response norm": Operator(lambda: nn.LocalResponseNorm(3), (5, 3, 4)),
    "weights of norm one": Operator(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 7)), (5,)),
}
