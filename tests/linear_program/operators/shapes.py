"""Operators that move, repeat, pick or pad numbers: every entry of their Jacobian is 0 or 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tests.linear_program.operators.case import Of, Operator, of


def _shuffled(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)


def _at(function: Any, *index: int, shape: tuple[int, ...] = (3, 5, 4), **options: Any) -> Operator:
    """A case of a function of the input and a constant index ``i``."""
    return Operator(lambda: Of(lambda m, x: function(x, m.i), i=torch.tensor(index)), shape, **options)


def _padded(padding: tuple[int, ...], shape: tuple[int, ...] = (3, 5, 4), **options: Any) -> Operator:
    return of(lambda x: functional.pad(x, padding, **options), shape)


def _windows(x: torch.Tensor) -> torch.Tensor:
    """Windows of 2 x 3 of an image (b, h, w, c), as rows."""
    y = torch.roll(x, (-1, -2), (1, 2)).unflatten(1, (2, 2)).unflatten(3, (2, 3))
    return torch.sin(y.permute(0, 1, 3, 2, 4, 5).flatten(3, 4))


MOVED: dict[str, Operator] = {
    "permute": of(lambda x: x.permute(0, 2, 3, 1)),
    "permute there and back": of(lambda x: torch.sin(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
    "permute the batch away": of(lambda x: torch.sin(x.permute(2, 0, 1)).permute(1, 2, 0), (5, 4)),
    "transpose": of(lambda x: x.transpose(1, 3)),
    "transpose with the batch": of(lambda x: torch.sin(x.transpose(0, 1)).transpose(0, 1), (5, 4)),
    "movedim": of(lambda x: x.movedim(1, -1)),
    "swapaxes": of(lambda x: torch.moveaxis(x.swapaxes(1, 2), 3, 1).swapdims(2, 3)),
    "transposed by a letter": of(lambda x: torch.sin(x.T).T, (5,)),
    "view as another": of(lambda x: x.view_as(y := torch.sin(x).flatten(1)) + y.reshape_as(y)),
    "t": Operator(lambda: Of(lambda m, x: torch.mm(m.w, x.t()).t(), w=torch.randn(7, 5)), (5,)),
    "reshape that mixes axes": of(lambda x: x.reshape(-1, 10, 6)),
    "reshape of a permuted image": of(lambda x: x.permute(0, 3, 1, 2).reshape(-1, 6, 10)),
    "view": of(lambda x: torch.sin(x).view(-1, 5, 12)),
    "flatten": of(lambda x: x.flatten(1)),
    "flatten the middle": of(lambda x: x.flatten(1, 2)),
    "flatten with the batch": of(lambda x: torch.sin(x.flatten(0, 1)).unflatten(0, (-1, 3))),
    "unflatten": of(lambda x: x.unflatten(1, (2, 3)), (6, 5)),
    "squeeze": of(lambda x: x.squeeze(2), (3, 1, 4)),
    "unsqueeze": of(lambda x: x.unsqueeze(-1).unsqueeze(1)),
    "expand": of(lambda x: x.expand(-1, 3, 5, 4), (3, 1, 4)),
    "expand with new axes": of(lambda x: x[:, None].expand(-1, 6, -1, -1), (5, 4)),
    "broadcast": of(lambda x: torch.broadcast_to(x, (x.shape[0], 3, 5, 4)), (3, 1, 4)),
    "repeat": of(lambda x: x.repeat(1, 2, 3), (5, 4)),
    "repeat each": of(lambda x: x.repeat_interleave(2, dim=1), (5, 4)),
    "tile": of(lambda x: x.tile(1, 2, 3), (5, 4)),
    "flip": of(lambda x: x.flip(1, 3)),
    "roll": of(lambda x: torch.roll(x, (1, -2), (1, 3))),
    "rotate": of(lambda x: torch.rot90(x, 1, (2, 3))),
    "contiguous in channels last": of(lambda x: torch.sin(x.contiguous(memory_format=torch.channels_last))),
    "clone": of(lambda x: x.clone()),
    "pixel shuffle": of(lambda x: functional.pixel_shuffle(x, 2), (12, 5, 4)),
    "pixel unshuffle": of(lambda x: functional.pixel_unshuffle(x, 2), (3, 6, 4)),
    "channel shuffle": of(lambda x: functional.channel_shuffle(x, 2), (6, 5, 4)),
    "channel shuffle by views": of(_shuffled, (6, 5, 4)),
    "window partition": of(_windows, (4, 6, 5)),
    "unfold along an axis": of(lambda x: x.unfold(2, 3, 2), (3, 7)),
    "patches as columns": Operator(lambda: nn.Unfold(3, padding=1, stride=2), (3, 5, 6)),
    "columns as patches": Operator(lambda: nn.Fold((5, 6), 3, padding=1, stride=2), (27, 9)),
    "upper triangle": of(torch.triu, (5, 4)),
    "diagonal": of(lambda x: torch.diagonal(x, dim1=1, dim2=2), (5, 4)),
    "embedded diagonal": of(lambda x: torch.diag_embed(x), (5,)),
}

PICKED: dict[str, Operator] = {
    "slice": of(lambda x: x[:, 1:]),
    "slice with a step": of(lambda x: x[:, :, ::2]),
    "slices of two axes": of(lambda x: x[:, 1:3, 1:4:2]),
    "slice from the end": of(lambda x: x[:, :, -2:]),
    "slices that overlap": of(lambda x: torch.sin(x[:, :, 1:]) * x[:, :, :-1]),
    "slices of even and odd places": of(lambda x: torch.cat([x[:, :, 0::2], x[:, :, 1::2]], 2), (3, 6, 4)),
    "narrow": of(lambda x: x.narrow(2, 1, 3)),
    "select": of(lambda x: x[:, 1]),
    "select the last": of(lambda x: x[:, :, -1]),
    "split": of(lambda x: (s := x.split([1, 2, 2], 2))[0] * torch.sin(s[1]) + s[2]),
    "split of which one part is used": of(lambda x: x.split(2, 2)[1]),
    "chunk": of(lambda x: (p := x.chunk(2, 1))[0] * torch.sigmoid(p[1]), (6, 5, 4)),
    "chunks that are used twice": of(lambda x: (p := x.chunk(3, 1))[0] * p[1] + torch.sin(p[1]), (6, 5)),
    "split in unequal parts": of(lambda x: torch.sin((p := x.tensor_split(2, 2))[0][:, :, 1:]) + p[1]),
    "unbind": of(lambda x: (p := x.unbind(1))[2] * torch.sin(p[0])),
    "index by a constant": _at(lambda x, i: x[:, i], 2, 0, 1),
    "index by a constant that repeats": _at(lambda x, i: x[:, :, i], 2, 0, 2, 4, 2),
    "index by a negative constant": _at(lambda x, i: x[:, :, i], -1, 0, -2),
    "index by two constants": _at(lambda x, i: x[:, i, i + 1], 2, 0, 2),
    "index by a constant table": _at(lambda x, i: x[:, :, i.view(2, 3)], 2, 0, 2, 4, 1, 1),
    "index by a constant mask": _at(lambda x, i: x[:, :, i > 0], 1, 0, 0, 1, 1),
    "index by a list": of(lambda x: x[:, [2, 0]]),
    "index select": _at(lambda x, i: x.index_select(2, i), 2, 0, 2),
    "gather by a constant": _at(
        lambda x, i: x.gather(2, i.view(1, 1, 3, 1).expand(x.shape[0], 3, 3, 4)), 2, 0, 2
    ),
    "gather by the order of the points": of(lambda x: x.gather(2, x.argsort(2))),
    "take along an axis": of(lambda x: torch.take_along_dim(x, x.argmax(2, keepdim=True), 2)),
    "sort": of(lambda x: x.sort(dim=2).values),
    "topk": of(lambda x: x.topk(2, dim=2).values),
    "median": of(lambda x: x.median(dim=2).values),
    "scatter": _at(
        lambda x, i: torch.zeros_like(x).scatter(2, i.view(1, 1, 5, 1).expand_as(x), torch.sin(x)),
        *(2, 0, 1, 4, 3),
    ),
    "scatter add": _at(
        lambda x, i: torch.zeros_like(x).scatter_add(2, i.view(1, 1, 5, 1).expand_as(x), x),
        *(2, 0, 2, 4, 2),
    ),
    "index add": _at(lambda x, i: torch.sin(x).index_add(2, i, x[:, :, :3]), 2, 0, 2),
}

JOINED: dict[str, Operator] = {
    "cat of channels": of(lambda x: torch.cat([x, torch.sin(x)[:, :2]], 1)),
    "cat of rows": of(lambda x: torch.cat([x[:, :, :2], torch.sin(x)], 2)),
    "cat of columns": of(lambda x: torch.cat([torch.sin(x), x], -1)),
    "cat with a constant": Operator(
        lambda: Of(lambda m, x: torch.cat([m.c.expand(x.shape[0], 2, 4), x], 1), c=torch.randn(1, 2, 4)),
        (5, 4),
    ),
    "cat of one thing twice": of(lambda x: torch.cat([x, x], 1)),
    "cat of a class token": Operator(
        lambda: Of(
            lambda m, x: torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1) + m.place,
            token=torch.randn(1, 1, 4),
            place=torch.randn(1, 6, 4),
        ),
        (5, 4),
    ),
    "concat": of(lambda x: torch.concat([x, torch.sin(x)], 1)),
    "stack": of(lambda x: torch.stack([x, torch.sin(x)], 2)),
    "stack of the last axis": of(lambda x: torch.stack([torch.sin(x), x], -1)),
    "stack with a constant": of(lambda x: torch.stack([x, torch.ones_like(x)], 1)),
    "pad by a constant": _padded((1, 2, 0, 1), value=0.5),
    "pad of channels": _padded((0, 0, 0, 0, 1, 2)),
    "pad that crops": _padded((-1, 2, 1, -1)),
    "pad by reflection": _padded((1, 2, 2, 1), mode="reflect"),
    "pad by replication": _padded((1, 2, 2, 0), mode="replicate"),
    "pad around": _padded((1, 2, 2, 0), mode="circular"),
    "pad of a sequence by reflection": _padded((2, 1), (3, 5), mode="reflect"),
    "pad of a volume by replication": _padded((1, 0, 1, 1, 0, 2), (2, 3, 5, 4), mode="replicate"),
}
