"""Pieces of networks: in-place writes, branches, and layers in every order."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.linear_program.operators.case import Of, Operator
from tests.linear_program.operators.normalisation import batch_norm, trained


def _written(function: Any) -> Operator:
    """A function that writes into the result of a convolution."""
    return Operator(lambda: Of(lambda m, x: function(m.conv(x), m), conv=nn.Conv2d(3, 6, 3, padding=1)))


def _chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def _zeroed(y: Tensor, m: nn.Module) -> Tensor:
    y[:, 0] = 0
    return torch.sin(y)


def _zeroed_by_its_name(y: Tensor, m: nn.Module) -> Tensor:
    y[:, 1].zero_()
    return torch.sin(y)


def _slice_from_slice(y: Tensor, m: nn.Module) -> Tensor:
    z = y.clone()
    z[:, 1:3] = y[:, 3:5] * y[:, :2]
    return z


def _added_to(y: Tensor, m: nn.Module) -> Tensor:
    y += torch.sin(y.clone())
    y *= 1.5
    y[:, :, 1:3] += y[:, :, 3:5]
    return y


def _through_a_view(y: Tensor, m: nn.Module) -> Tensor:
    y.view(-1, 6, 20)[:, :, ::3].mul_(2)
    y.flatten(1)[:, :5].neg_()
    return y * y


def _read_before_written(y: Tensor, m: nn.Module) -> Tensor:
    z = torch.exp(y)
    y.relu_()
    return y + z


def _relu_read_again(y: Tensor, m: nn.Module) -> Tensor:
    z = functional.relu(y, inplace=True)
    return torch.cat([z, y * 2, z[:, :1] * y[:, 1:2]], 1)


def _residual(m: nn.Module, x: Tensor) -> Tensor:
    y = torch.relu(m.norm1(m.conv1(x)))
    return torch.relu(m.norm2(m.conv2(y)) + m.down(x))


def _pre_activated(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv1(torch.relu(m.norm1(x)))
    return m.conv2(torch.relu(m.norm2(y))) + x


def _dense(m: nn.Module, x: Tensor) -> Tensor:
    y = torch.cat([x, m.conv1(torch.relu(m.norm1(x)))], 1)
    z = torch.cat([y, m.conv2(torch.relu(m.norm2(y)))], 1)
    return m.pool(m.conv3(torch.relu(m.norm3(z))))


def _inception(m: nn.Module, x: Tensor) -> Tensor:
    return torch.cat(
        [torch.relu(m.one(x)), torch.relu(m.three(x)), m.pooled(functional.max_pool2d(x, 3, 1, 1))], 1
    )


def _squeezed(m: nn.Module, x: Tensor) -> Tensor:
    y = functional.silu(m.conv(x))
    gate = torch.sigmoid(m.up(functional.silu(m.down(y.mean((2, 3), keepdim=True)))))
    return m.out(gate * y)


def _squeezed_hard(m: nn.Module, x: Tensor) -> Tensor:
    y = functional.hardswish(m.conv(x))
    gate = functional.hardsigmoid(m.up(torch.relu(m.down(functional.adaptive_avg_pool2d(y, 1)))))
    return m.out(gate * y)


def _squeeze(function: Any) -> Operator:
    return Operator(
        lambda: Of(
            function,
            conv=nn.Conv2d(3, 6, 3, padding=1),
            down=nn.Conv2d(6, 2, 1),
            up=nn.Conv2d(2, 6, 1),
            out=nn.Conv2d(6, 4, 1),
        ),
    )


def _inverted(m: nn.Module, x: Tensor) -> Tensor:
    y = functional.relu6(m.norm1(m.expand(x)))
    return x + m.norm3(m.project(functional.relu6(m.norm2(m.depth(y)))))


def _shuffle_unit(m: nn.Module, x: Tensor) -> Tensor:
    left, right = x.chunk(2, 1)
    y = torch.cat([left, torch.relu(m.norm(m.conv(right)))], 1)
    b, c, h, w = y.shape
    return y.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


def _convnext(m: nn.Module, x: Tensor) -> Tensor:
    y = m.norm(m.depth(x).permute(0, 2, 3, 1))
    return x + (m.scale * m.down(functional.gelu(m.up(y)))).permute(0, 3, 1, 2)


def _windowed(m: nn.Module, x: Tensor) -> Tensor:
    """Shifted windows of 2 x 2 of an image (b, 4, 6, 5), attention inside each, and back (Swin)."""
    b, h, w, c = x.shape
    y = torch.roll(m.norm(x), (-1, -1), (1, 2))
    y = y.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
    q, k, v = m.project(y).chunk(3, -1)
    y = torch.softmax(q @ k.mT * c**-0.5 + m.bias, -1) @ v
    y = y.view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
    return x + torch.roll(y, (1, 1), (1, 2))


def _patches(m: nn.Module, x: Tensor) -> Tensor:
    y = torch.cat([m.token.expand(x.shape[0], -1, -1), m.embed(x).flatten(2).transpose(1, 2)], 1)
    return m.top(m.layer(y + m.place)[:, 0])


def _merging(m: nn.Module, x: Tensor) -> Tensor:
    parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return m.down(m.norm(torch.cat(parts, -1)))


def _u_net(m: nn.Module, x: Tensor) -> Tensor:
    y = torch.relu(m.first(x))
    z = torch.relu(m.low(functional.max_pool2d(y, 2)))
    return m.last(torch.cat([m.up(z), y], 1))


def _in_orders() -> dict[str, Operator]:
    """Convolution first or last, and batch norm, relu and pool in every order between."""
    made = {}
    parts = {
        "norm": lambda: batch_norm(6),
        "relu": lambda: nn.ReLU(inplace=True),
        "pool": lambda: nn.MaxPool2d(2),
    }
    for order in itertools.permutations(parts):
        made[f"conv, {', '.join(order)}, conv"] = Operator(
            lambda order=order: _chain(
                nn.Conv2d(3, 6, 3, padding=1), *(parts[name]() for name in order), nn.Conv2d(6, 5, 2)
            ),
            (3, 6, 4),
        )
    return made


def _module(*make: Any, shape: tuple[int, ...]) -> Operator:
    return Operator(lambda: _chain(*(one() for one in make)), shape)


WRITTEN: dict[str, Operator] = {
    "a channel set to zero": _written(_zeroed),
    "a channel set to zero by its name": _written(_zeroed_by_its_name),
    "a slice written from a slice": _written(_slice_from_slice),
    "added to in place": _written(_added_to),
    "written through a view": _written(_through_a_view),
    "read before it is written": _written(_read_before_written),
    "relu in place, read by both names": _written(_relu_read_again),
    "relu in place": _written(lambda y, m: y.relu_()),
    "clamp in place": _written(lambda y, m: y.clamp_(-0.3, 0.4)),
    "masked fill in place": _written(lambda y, m: y.masked_fill_(y > 0.3, -1.0)),
    "the points themselves written": Operator(
        lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 6, 3))
    ),
}

BLOCKS: dict[str, Operator] = {
    **_in_orders(),
    "conv, pool, relu": _module(
        lambda: nn.Conv2d(3, 6, 3), lambda: nn.MaxPool2d(2), nn.ReLU, shape=(3, 8, 6)
    ),
    "conv, relu, overlapping pool, conv": _module(
        *(lambda: nn.Conv2d(3, 6, 3, padding=1), nn.ReLU, lambda: nn.MaxPool2d(3, 2, 1)),
        lambda: nn.Conv2d(6, 4, 3),
        shape=(3, 8, 6),
    ),
    "norm of rows, pool of stride 1, linear": _module(
        *(lambda: trained(nn.LayerNorm(6)), lambda: nn.MaxPool2d(3, 1, 1), lambda: nn.Linear(6, 7)),
        shape=(3, 5, 6),
    ),
    "norm of rows, pool, linear": _module(
        *(lambda: trained(nn.LayerNorm(6)), lambda: nn.MaxPool2d(2), lambda: nn.Linear(3, 7)),
        shape=(3, 4, 6),
    ),
    "conv, norm, relu, overlapping pool": _module(
        *(lambda: nn.Conv2d(3, 6, 7, 2, 3, bias=False), lambda: batch_norm(6), nn.ReLU),
        lambda: nn.MaxPool2d(3, 2, 1),
        shape=(3, 13, 12),
    ),
    "conv, relu, average pool, flatten, linear": _module(
        *(lambda: nn.Conv2d(3, 6, 3), nn.ReLU, lambda: nn.AvgPool2d(2), nn.Flatten),
        lambda: nn.Linear(36, 7),
        shape=(3, 8, 6),
    ),
    "conv, flatten, linear": _module(
        lambda: nn.Conv2d(3, 6, 3), nn.Flatten, lambda: nn.Linear(36, 7), shape=(3, 5, 4)
    ),
    "conv, relu, pool, flatten, linear": _module(
        *(lambda: nn.Conv2d(3, 6, 3), nn.ReLU, lambda: nn.MaxPool2d(2), nn.Flatten),
        lambda: nn.Linear(36, 7),
        shape=(3, 8, 6),
    ),
    "small convolutional network": _module(
        *(lambda: nn.Conv2d(1, 4, 5), nn.ReLU, lambda: nn.MaxPool2d(2), lambda: nn.Conv2d(4, 6, 3), nn.ReLU),
        *(lambda: nn.MaxPool2d(2), nn.Flatten, lambda: nn.Linear(12, 8), nn.ReLU, lambda: nn.Linear(8, 7)),
        shape=(1, 15, 16),
    ),
    "perceptron": _module(
        *(lambda: nn.Linear(9, 8), nn.Tanh, lambda: nn.Linear(8, 6), nn.ReLU, lambda: nn.Linear(6, 7)),
        shape=(9,),
    ),
    "decoder": _module(
        *(lambda: nn.Linear(4, 24), nn.ReLU, lambda: nn.Unflatten(1, (6, 2, 2))),
        *(lambda: nn.ConvTranspose2d(6, 4, 4, 2, 1), nn.ReLU, lambda: nn.ConvTranspose2d(4, 3, 4, 2, 1)),
        nn.Tanh,
        shape=(4,),
    ),
    "depthwise separable": _module(
        *(lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), lambda: batch_norm(6), nn.ReLU),
        *(lambda: nn.Conv2d(6, 4, 1, bias=False), lambda: batch_norm(4), nn.ReLU),
        shape=(6, 5, 4),
    ),
    "residual block": Operator(
        lambda: Of(
            _residual,
            conv1=nn.Conv2d(3, 6, 3, 2, 1, bias=False),
            conv2=nn.Conv2d(6, 6, 3, 1, 1, bias=False),
            down=_chain(nn.Conv2d(3, 6, 1, 2, bias=False), batch_norm(6)),
            norm1=batch_norm(6),
            norm2=batch_norm(6),
        ),
        (3, 7, 6),
    ),
    "pre-activated residual block": Operator(
        lambda: Of(
            _pre_activated,
            conv1=nn.Conv2d(3, 6, 3, 1, 1),
            conv2=nn.Conv2d(6, 3, 3, 1, 1),
            norm1=batch_norm(3),
            norm2=batch_norm(6),
        ),
    ),
    "densely connected block": Operator(
        lambda: Of(
            _dense,
            conv1=nn.Conv2d(3, 2, 3, padding=1),
            conv2=nn.Conv2d(5, 2, 3, padding=1),
            conv3=nn.Conv2d(7, 4, 1),
            norm1=batch_norm(3),
            norm2=batch_norm(5),
            norm3=batch_norm(7),
            pool=nn.AvgPool2d(2),
        ),
        (3, 6, 4),
    ),
    "inception block": Operator(
        lambda: Of(
            _inception, one=nn.Conv2d(3, 2, 1), three=nn.Conv2d(3, 4, 3, padding=1), pooled=nn.Conv2d(3, 5, 1)
        ),
    ),
    "squeeze and excitation": _squeeze(_squeezed),
    "squeeze and excitation, hard": _squeeze(_squeezed_hard),
    "inverted residual": Operator(
        lambda: Of(
            _inverted,
            expand=nn.Conv2d(3, 8, 1, bias=False),
            depth=nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            project=nn.Conv2d(8, 3, 1, bias=False),
            norm1=batch_norm(8),
            norm2=batch_norm(8),
            norm3=batch_norm(3),
        ),
    ),
    "shuffle unit": Operator(
        lambda: Of(_shuffle_unit, conv=nn.Conv2d(3, 3, 3, padding=1, groups=3), norm=batch_norm(3)),
        (6, 5, 4),
    ),
    "ConvNeXt block": Operator(
        lambda: Of(
            _convnext,
            depth=nn.Conv2d(6, 6, 7, padding=3, groups=6),
            norm=trained(nn.LayerNorm(6)),
            up=nn.Linear(6, 9),
            down=nn.Linear(9, 6),
            scale=torch.randn(6),
        ),
        (6, 5, 4),
    ),
    "window attention": Operator(
        lambda: Of(
            _windowed, norm=trained(nn.LayerNorm(5)), project=nn.Linear(5, 15), bias=torch.randn(4, 4)
        ),
        (4, 6, 5),
    ),
    "patch merging": Operator(
        lambda: Of(_merging, norm=trained(nn.LayerNorm(12)), down=nn.Linear(12, 5, bias=False)),
        (4, 6, 3),
    ),
    "vision transformer": Operator(
        lambda: Of(
            _patches,
            embed=nn.Conv2d(3, 6, 4, 4),
            token=torch.randn(1, 1, 6),
            place=torch.randn(1, 7, 6),
            layer=nn.TransformerEncoderLayer(6, 2, 9, batch_first=True, norm_first=True, activation="gelu"),
            top=nn.Linear(6, 7),
        ),
        (3, 8, 12),
        outputs=1e-6,
    ),
    "U-Net": Operator(
        lambda: Of(
            _u_net,
            first=nn.Conv2d(3, 4, 3, padding=1),
            low=nn.Conv2d(4, 6, 3, padding=1),
            up=nn.ConvTranspose2d(6, 4, 2, 2),
            last=nn.Conv2d(8, 2, 1),
        ),
        (3, 6, 4),
    ),
}
