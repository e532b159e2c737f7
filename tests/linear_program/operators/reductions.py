"""Pools, sums, maxima and softmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tests.linear_program.operators.case import Operator, of


def _pool(kind: Any, *arguments: Any, shape: tuple[int, ...] = (3, 7, 6), **options: Any) -> Operator:
    return Operator(lambda: kind(*arguments, **options), shape)


POOLS: dict[str, Operator] = {
    "max pool": _pool(nn.MaxPool2d, 2, shape=(3, 6, 4)),
    "max pool that leaves a remainder": _pool(nn.MaxPool2d, 2, shape=(3, 7, 5)),
    "max pool 3": _pool(nn.MaxPool2d, 3, shape=(3, 9, 6)),
    "max pool of windows that are not square": _pool(nn.MaxPool2d, (3, 2), shape=(3, 7, 6)),
    "max pool that overlaps": _pool(nn.MaxPool2d, 3, 2, 1),
    "max pool that overlaps, not padded": _pool(nn.MaxPool2d, 3, 2),
    "max pool of stride 1": _pool(nn.MaxPool2d, 3, 1, 1, shape=(3, 5, 4)),
    "max pool 2 of stride 1": _pool(nn.MaxPool2d, 2, 1, shape=(3, 5, 4)),
    "max pool that skips": _pool(nn.MaxPool2d, 2, 3, shape=(3, 8, 7)),
    "max pool that rounds up": _pool(nn.MaxPool2d, 2, ceil_mode=True, shape=(3, 7, 5)),
    "max pool that overlaps and rounds up": _pool(nn.MaxPool2d, 3, 2, ceil_mode=True, shape=(3, 8, 6)),
    "max pool that is dilated": _pool(nn.MaxPool2d, 2, 1, dilation=2),
    "max pool of padding alone": _pool(nn.MaxPool2d, 2, 2, 1),
    "max pool of strides 2 and 1": _pool(nn.MaxPool2d, (2, 3), (2, 1), (0, 1)),
    "max pool of sequences": _pool(nn.MaxPool1d, 2, shape=(3, 7)),
    "max pool of sequences that overlaps": _pool(nn.MaxPool1d, 3, 2, 1, shape=(3, 8)),
    "max pool of volumes": _pool(nn.MaxPool3d, 2, shape=(3, 5, 4, 6)),
    "max pool of volumes that overlaps": _pool(nn.MaxPool3d, 3, 2, 1, shape=(2, 3, 5, 4)),
    "max pool with indices": of(lambda x: functional.max_pool2d(x, 2, return_indices=True)[0], (3, 6, 4)),
    "max pool and back": of(
        lambda x: functional.max_unpool2d(*functional.max_pool2d(x, 2, return_indices=True), 2),
        (3, 6, 4),
    ),
    "max pool after relu": _pool(lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), shape=(3, 6, 4)),
    "relu after max pool": _pool(lambda: nn.Sequential(nn.MaxPool2d(2), nn.ReLU()), shape=(3, 6, 4)),
    "overlapping max pool after relu": _pool(lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 2, 1))),
    "relu after an overlapping max pool": _pool(lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.ReLU())),
    "max pool with two readers": of(lambda x: (y := functional.max_pool2d(x, 2)) + torch.sin(y), (3, 6, 4)),
    "adaptive max pool": _pool(nn.AdaptiveMaxPool2d, (3, 2)),
    "adaptive max pool to one": _pool(nn.AdaptiveMaxPool2d, 1),
    "adaptive max pool of sequences": _pool(nn.AdaptiveMaxPool1d, 3, shape=(3, 7)),
    "fractional max pool": of(lambda x: functional.lp_pool2d(x, 2, 2), (3, 6, 4), positive=True),
    "average pool": _pool(nn.AvgPool2d, 2, shape=(3, 6, 4)),
    "average pool that leaves a remainder": _pool(nn.AvgPool2d, 2, shape=(3, 7, 5)),
    "average pool that overlaps": _pool(nn.AvgPool2d, 3, 2, 1),
    "average pool without the padding": _pool(nn.AvgPool2d, 3, 2, 1, count_include_pad=False),
    "average pool of stride 1": _pool(nn.AvgPool2d, 3, 1, 1, shape=(3, 5, 4)),
    "average pool that skips": _pool(nn.AvgPool2d, 2, 3, shape=(3, 8, 7)),
    "average pool that rounds up": _pool(nn.AvgPool2d, 2, ceil_mode=True, shape=(3, 7, 5)),
    "average pool that is padded and rounds up": _pool(
        nn.AvgPool2d, 3, 2, 1, ceil_mode=True, count_include_pad=False, shape=(3, 8, 6)
    ),
    "average pool with a divisor": _pool(nn.AvgPool2d, 2, divisor_override=3, shape=(3, 6, 4)),
    "average pool of windows that are not square": _pool(nn.AvgPool2d, (3, 2), shape=(3, 7, 6)),
    "average pool of sequences": _pool(nn.AvgPool1d, 3, 2, 1, shape=(3, 7)),
    "average pool of volumes": _pool(nn.AvgPool3d, (1, 2, 3), shape=(3, 2, 4, 6)),
    "adaptive average pool to one": _pool(nn.AdaptiveAvgPool2d, 1),
    "adaptive average pool of equal windows": _pool(nn.AdaptiveAvgPool2d, (3, 2), shape=(3, 6, 4)),
    "adaptive average pool of unequal windows": _pool(nn.AdaptiveAvgPool2d, (3, 4)),
    "adaptive average pool that repeats": _pool(nn.AdaptiveAvgPool2d, (7, 6), shape=(3, 5, 4)),
    "adaptive average pool that does nothing": _pool(nn.AdaptiveAvgPool2d, (5, 4), shape=(3, 5, 4)),
    "adaptive average pool of one axis": _pool(nn.AdaptiveAvgPool2d, (None, 1)),
    "adaptive average pool of sequences": _pool(nn.AdaptiveAvgPool1d, 3, shape=(3, 7)),
    "adaptive average pool of volumes": _pool(nn.AdaptiveAvgPool3d, (2, 1, 3), shape=(3, 4, 5, 6)),
    "upsampling by the nearest": _pool(nn.Upsample, scale_factor=2, shape=(3, 5, 4)),
    "upsampling by the nearest, not quite thrice": _pool(nn.Upsample, scale_factor=3.1, shape=(2, 4, 3)),
    "upsampling by the nearest to a size": _pool(nn.Upsample, size=(7, 9), shape=(3, 5, 4)),
    "upsampling by lines": _pool(nn.Upsample, scale_factor=2, mode="bilinear", shape=(3, 5, 4)),
    "upsampling by lines, corners aligned": _pool(
        nn.Upsample, size=(7, 9), mode="bilinear", align_corners=True, shape=(3, 5, 4)
    ),
    "upsampling of sequences": _pool(nn.Upsample, scale_factor=3, shape=(3, 5)),
    "upsampling by cubics": _pool(lambda: nn.Upsample(scale_factor=2, mode="bicubic"), shape=(2, 5, 4)),
}

REDUCTIONS: dict[str, Operator] = {
    "mean of images": of(lambda x: x.mean((2, 3))),
    "mean of images, axes kept": of(lambda x: x.mean((-2, -1), keepdim=True)),
    "mean of one axis": of(lambda x: x.mean(1)),
    "mean of everything": of(lambda x: x.mean((1, 2, 3))),
    "sum of images": of(lambda x: x.sum((2, 3))),
    "sum of one axis, kept": of(lambda x: x.sum(1, keepdim=True)),
    "sum of everything": of(lambda x: x.sum((1, 2, 3))),
    "largest of an axis": of(lambda x: x.amax(2)),
    "largest of two axes": of(lambda x: x.amax((2, 3), keepdim=True)),
    "smallest of an axis": of(lambda x: x.amin(2)),
    "max over an axis": of(lambda x: x.max(2).values),
    "max over an axis, kept": of(lambda x: x.max(1, keepdim=True)[0]),
    "min over an axis": of(lambda x: x.min(3).values),
    "log of summed exponentials": of(lambda x: torch.logsumexp(x, 2)),
    "log of summed exponentials of two axes": of(lambda x: torch.logsumexp(x, (1, 3), keepdim=True)),
    "softmax": of(lambda x: torch.softmax(x, -1), (5, 4)),
    "softmax of a middle axis": of(lambda x: torch.softmax(x, 1)),
    "log softmax": of(lambda x: torch.log_softmax(x, -1), (5, 4)),
    "log softmax of a middle axis": of(lambda x: torch.log_softmax(x, 2)),
    "softmax of vectors": of(lambda x: torch.softmax(x, 1), (7,)),
    "softmin": of(lambda x: functional.softmin(x, -1), (5, 4)),
    "norm of an axis": of(lambda x: x.norm(dim=1)),
    "norm of order 1": of(lambda x: torch.linalg.vector_norm(x, 1, dim=2)),
    "norm of order 3": of(lambda x: torch.linalg.vector_norm(x, 3, dim=2)),
    "largest magnitude": of(lambda x: torch.linalg.vector_norm(x, float("inf"), dim=2)),
    "cumulative sum": of(lambda x: x.cumsum(2)),
    "cumulative product": of(lambda x: x.cumprod(2)),
    "product": of(lambda x: x.prod(2)),
    "variance": of(lambda x: x.var((2, 3))),
    "variance without correction": of(lambda x: x.var(1, correction=0, keepdim=True)),
    "standard deviation": of(lambda x: x.std(-1)),
    "variance and mean": of(lambda x: torch.cat(torch.var_mean(x, 2), 1)),
}
