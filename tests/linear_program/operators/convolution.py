"""Convolutions: every stride, padding, dilation and grouping that a rule may treat differently."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tests.linear_program.operators.case import Of, Operator

_KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def _conv(shape: tuple[int, ...], out: int, kernel: Any, **options: Any) -> Operator:
    return Operator(lambda: _KINDS[len(shape) - 1](shape[0], out, kernel, **options), shape)


def _transposed(shape: tuple[int, ...], out: int, kernel: Any, **options: Any) -> Operator:
    return Operator(lambda: _TRANSPOSED[len(shape) - 1](shape[0], out, kernel, **options), shape)


CONVOLUTIONS: dict[str, Operator] = {
    "conv2d 1x1": _conv((3, 5, 4), 6, 1),
    "conv2d 1x1 padded": _conv((3, 5, 4), 6, 1, padding=1),
    "conv2d 1x1 to one channel": _conv((3, 5, 4), 1, 1),
    "conv2d 3x3": _conv((3, 5, 4), 6, 3),
    "conv2d 3x3 padded": _conv((3, 5, 4), 6, 3, padding=1),
    "conv2d 3x3 without bias": _conv((3, 5, 4), 6, 3, padding=1, bias=False),
    "conv2d padded more than the kernel": _conv((3, 5, 4), 6, 3, padding=3),
    "conv2d padded on one axis": _conv((3, 5, 4), 6, 3, padding=(0, 1)),
    "conv2d 5x3": _conv((3, 5, 6), 4, (5, 3), padding=(2, 1)),
    "conv2d 1x3": _conv((3, 5, 4), 6, (1, 3), padding=(0, 1)),
    "conv2d 2x2": _conv((3, 5, 4), 6, 2),
    "conv2d 4x4 padded": _conv((3, 5, 6), 4, 4, padding=1),
    "conv2d padding same": _conv((3, 5, 4), 6, 3, padding="same"),
    "conv2d padding same, even kernel": _conv((3, 5, 6), 4, (2, 4), padding="same"),
    "conv2d padding same, dilated": _conv((3, 5, 6), 4, 3, padding="same", dilation=2),
    "conv2d padding valid": _conv((3, 5, 4), 6, 3, padding="valid"),
    "conv2d padding by reflection": _conv((3, 5, 4), 6, 3, padding=2, padding_mode="reflect"),
    "conv2d padding by replication": _conv((3, 5, 4), 6, 3, padding=(1, 2), padding_mode="replicate"),
    "conv2d padding around": _conv((3, 5, 4), 6, 3, padding=1, padding_mode="circular"),
    "conv2d of many channels": _conv((40, 5, 4), 33, 3, padding=1),
    "conv2d 1x1 of many channels": _conv((40, 5, 4), 33, 1),
    "conv2d of one channel": _conv((1, 6, 5), 4, 3, padding=1),
    "conv2d of one channel, sizes divisible by four": _conv((1, 8, 12), 3, 3, padding=1),
    "conv2d 5x5 of one channel": _conv((1, 9, 7), 4, 5),
    "conv2d of two channels": _conv((2, 6, 5), 4, 3),
    "conv2d 5x5 of three channels, padded": _conv((3, 8, 6), 4, 5, padding=2),
    "conv2d of the whole image": _conv((3, 5, 4), 7, (5, 4)),
    "conv2d stride 2, odd size": _conv((3, 7, 5), 6, 3, stride=2, padding=1),
    "conv2d stride 2, even size": _conv((3, 8, 6), 5, 3, stride=2, padding=1),
    "conv2d stride 2 that leaves a remainder": _conv((3, 8, 6), 5, 3, stride=2),
    "conv2d stride 2 of many channels": _conv((20, 7, 6), 9, 3, stride=2, padding=1),
    "conv2d stride 2, even kernel": _conv((3, 7, 6), 5, 4, stride=2, padding=1),
    "conv2d strides 2 and 1": _conv((3, 7, 6), 5, 3, stride=(2, 1), padding=1),
    "conv2d strides 1 and 3": _conv((3, 5, 8), 4, (3, 2), stride=(1, 3), padding=(1, 0)),
    "conv2d stride 3, kernel 5": _conv((3, 11, 10), 4, 5, stride=3, padding=2),
    "conv2d stride 2 of one channel": _conv((1, 9, 8), 5, 3, stride=2, padding=1),
    "conv2d 7x7 stride 2, a stem": _conv((3, 13, 12), 4, 7, stride=2, padding=3),
    "conv2d 11x11 stride 4, a stem": _conv((3, 23, 19), 4, 11, stride=4, padding=2),
    "conv2d 5x5 stride 4": _conv((3, 13, 12), 4, 5, stride=4, padding=1),
    "conv2d 1x1 stride 2, odd size": _conv((3, 7, 5), 6, 1, stride=2),
    "conv2d 1x1 stride 2, even size": _conv((3, 8, 6), 5, 1, stride=2),
    "conv2d 1x1 stride 2 of many channels": _conv((20, 7, 6), 9, 1, stride=2, bias=False),
    "conv2d 1x1 strides 3 and 2": _conv((3, 8, 5), 6, 1, stride=(3, 2)),
    "conv2d 1x1 strided and padded": _conv((3, 7, 6), 5, 1, stride=2, padding=1),
    "conv2d stride beyond the kernel": _conv((3, 8, 7), 6, 2, stride=3),
    "conv2d stride beyond the kernel, padded": _conv((3, 8, 7), 6, 2, stride=3, padding=1),
    "conv2d kernel of the stride": _conv((3, 8, 6), 5, 2, stride=2),
    "conv2d kernel of the stride, remainder": _conv((3, 9, 7), 5, 2, stride=2),
    "conv2d kernel of the stride, many channels": _conv((20, 8, 6), 9, 2, stride=2),
    "conv2d kernel of the stride, padded": _conv((3, 8, 6), 5, 2, stride=2, padding=1),
    "conv2d patches of four": _conv((3, 12, 8), 7, 4, stride=4),
    "conv2d patches of four of one channel": _conv((1, 8, 12), 5, 4, stride=4),
    "conv2d patches that are not square": _conv((3, 9, 8), 5, (3, 2), stride=(3, 2)),
    "conv2d dilated": _conv((3, 7, 6), 4, 3, dilation=2),
    "conv2d dilated and padded": _conv((3, 7, 6), 4, 3, dilation=2, padding=2),
    "conv2d dilated on one axis": _conv((3, 7, 6), 4, 3, dilation=(3, 1), padding=(3, 1)),
    "conv2d dilated and strided": _conv((3, 9, 8), 4, 3, dilation=2, stride=2, padding=2),
    "conv2d groups": _conv((6, 5, 4), 9, 3, padding=1, groups=3),
    "conv2d groups, strided": _conv((6, 7, 4), 8, 3, padding=1, stride=2, groups=2),
    "conv2d groups of one channel, strided": _conv((4, 7, 6), 12, 3, padding=1, stride=2, groups=4),
    "conv2d 1x1 groups": _conv((6, 5, 4), 9, 1, groups=3),
    "conv2d 1x1 groups, strided": _conv((6, 5, 4), 9, 1, groups=3, stride=2),
    "conv2d depthwise": _conv((6, 5, 4), 6, 3, padding=1, groups=6),
    "conv2d depthwise, multiplied": _conv((3, 5, 4), 6, 3, padding=1, groups=3),
    "conv2d depthwise, strided": _conv((6, 7, 5), 6, 3, padding=1, stride=2, groups=6),
    "conv2d depthwise 5x5 stride 2": _conv((6, 8, 7), 6, 5, padding=2, stride=2, groups=6, bias=False),
    "conv2d depthwise 7x7": _conv((5, 8, 6), 5, 7, padding=3, groups=5),
    "conv2d depthwise, dilated": _conv((5, 7, 6), 5, 3, padding=2, dilation=2, groups=5),
    "conv1d": _conv((3, 7), 5, 3),
    "conv1d 1": _conv((3, 7), 5, 1),
    "conv1d padded": _conv((3, 7), 5, 3, padding=1),
    "conv1d padding same, even kernel": _conv((3, 7), 5, 4, padding="same"),
    "conv1d strided": _conv((3, 8), 5, 4, stride=3, padding=1),
    "conv1d kernel of the stride": _conv((3, 9), 5, 3, stride=3),
    "conv1d 1 strided": _conv((3, 8), 5, 1, stride=2),
    "conv1d dilated": _conv((3, 9), 5, 3, dilation=3, padding=3),
    "conv1d depthwise": _conv((5, 7), 5, 3, padding=1, groups=5),
    "conv1d groups": _conv((6, 7), 4, 3, stride=2, groups=2),
    "conv1d of one channel": _conv((1, 11), 4, 5, padding=2),
    "conv3d": _conv((3, 5, 4, 6), 2, 3),
    "conv3d padded": _conv((2, 3, 5, 4), 4, 3, padding=1),
    "conv3d strided": _conv((3, 4, 7, 5), 2, (1, 3, 2), stride=(1, 2, 2), padding=(0, 1, 1)),
    "conv3d kernel of the stride": _conv((3, 4, 6, 5), 4, (1, 2, 2), stride=(1, 2, 2)),
    "conv3d depthwise, dilated": _conv((3, 4, 7, 5), 3, (1, 3, 3), dilation=(1, 2, 1), groups=3),
    "conv2d twice with one kernel": Operator(
        lambda: Of(lambda m, x: m.conv(torch.sin(m.conv(x))), conv=nn.Conv2d(3, 3, 3, padding=1))
    ),
    "conv2d of a transposed image": Operator(
        lambda: Of(lambda m, x: m.conv(x.transpose(2, 3)), conv=nn.Conv2d(3, 6, (3, 2), padding=1))
    ),
    "conv2d of a channels-last image": Operator(
        lambda: Of(
            lambda m, x: m.conv(x.contiguous(memory_format=torch.channels_last)), conv=nn.Conv2d(3, 6, 3)
        )
    ),
    "conv2d along the axis of an image that is moved": Operator(
        lambda: Of(lambda m, x: m.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), conv=nn.Conv2d(4, 6, 3)),
        (7, 5, 4),
    ),
    "conv2d by a kernel of the sample": Operator(
        lambda: Of(
            lambda m, x: functional.conv2d(
                x.reshape(1, -1, 5, 4), m.kernels(x.mean((2, 3))).reshape(-1, 1, 3, 3), groups=x.shape[0] * 3
            ).reshape(-1, 3, 3, 2),
            kernels=nn.Linear(3, 27),
        ),
    ),
    "transposed conv1d": _transposed((3, 5), 4, 3),
    "transposed conv1d strided": _transposed((3, 5), 4, 4, stride=2, padding=1),
    "transposed conv2d": _transposed((3, 5, 4), 6, 3),
    "transposed conv2d 1x1": _transposed((3, 5, 4), 6, 1),
    "transposed conv2d padded, without bias": _transposed((3, 5, 4), 6, 3, padding=1, bias=False),
    "transposed conv2d stride 2": _transposed((3, 5, 4), 4, 3, stride=2, padding=1),
    "transposed conv2d with output padding": _transposed(
        (3, 5, 4), 4, 3, stride=2, padding=1, output_padding=1
    ),
    "transposed conv2d, output padding on one axis": _transposed(
        (3, 5, 4), 4, 3, stride=(3, 2), padding=1, output_padding=(2, 0)
    ),
    "transposed conv2d 4x4 stride 2": _transposed((3, 5, 4), 4, 4, stride=2, padding=1),
    "transposed conv2d kernel of the stride": _transposed((3, 5, 4), 4, 2, stride=2),
    "transposed conv2d stride beyond the kernel": _transposed((3, 4, 5), 2, 2, stride=3),
    "transposed conv2d groups": _transposed((6, 5, 4), 4, 3, groups=2, stride=2),
    "transposed conv2d depthwise": _transposed((5, 4, 3), 5, 3, groups=5, padding=1),
    "transposed conv2d dilated": _transposed((3, 5, 4), 4, 3, dilation=2, padding=1),
    "transposed conv2d dilated, with output padding": _transposed(
        (3, 5, 4), 4, 3, dilation=2, output_padding=1
    ),
    "transposed conv2d 3x2, strides 2 and 1": _transposed((3, 5, 4), 4, (3, 2), stride=(2, 1)),
    "transposed conv2d from one pixel": _transposed((7, 1, 1), 3, (5, 4)),
    "transposed conv2d to one channel": _transposed((6, 4, 3), 1, 4, stride=2, padding=1),
    "transposed conv3d": _transposed((3, 2, 4, 5), 2, 3, stride=(1, 2, 1), padding=1),
}
