"""Elementwise functions, and arithmetic of several tensors with every kind of broadcasting."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tests.linear_program.operators.case import Of, Operator, of


def _layer(kind: Any, *arguments: Any, **options: Any) -> Operator:
    return Operator(lambda: kind(*arguments, **options))


def _prelu(channels: int) -> nn.Module:
    layer = nn.PReLU(channels)
    with torch.no_grad():
        layer.weight.uniform_(0.1, 0.9)
    return layer


def _with(function: Any, *sizes: int, **options: Any) -> Operator:
    """A case of a function of the input and one constant ``c`` of these sizes."""
    return Operator(lambda: Of(lambda m, x: function(x, m.c), c=torch.randn(*sizes) + 2), **options)


POINTWISE: dict[str, Operator] = {
    "relu": of(torch.relu),
    "relu6": _layer(nn.ReLU6),
    "leaky relu": _layer(nn.LeakyReLU, 0.2),
    "elu": _layer(nn.ELU, 0.7),
    "selu": _layer(nn.SELU),
    "celu": _layer(nn.CELU, 0.7),
    "gelu": _layer(nn.GELU),
    "gelu by tanh": _layer(nn.GELU, approximate="tanh"),
    "silu": _layer(nn.SiLU),
    "mish": _layer(nn.Mish),
    "hardswish": _layer(nn.Hardswish),
    "hardsigmoid": _layer(nn.Hardsigmoid),
    "hardtanh": _layer(nn.Hardtanh, -0.5, 0.8),
    "tanh": of(torch.tanh),
    "sigmoid": of(torch.sigmoid),
    "softplus": _layer(nn.Softplus, 2.0, 1.5),
    "softsign": _layer(nn.Softsign),
    "logsigmoid": _layer(nn.LogSigmoid),
    "threshold": _layer(nn.Threshold, 0.2, -1.0),
    "tanhshrink": _layer(nn.Tanhshrink),
    "softshrink": _layer(nn.Softshrink, 0.3),
    "hardshrink": _layer(nn.Hardshrink, 0.3),
    "prelu of one slope": Operator(lambda: _prelu(1)),
    "prelu of a slope a channel": Operator(lambda: _prelu(3)),
    "gated linear unit": Operator(lambda: nn.GLU(1), (6, 5, 4)),
    "exp": of(torch.exp),
    "expm1": of(torch.expm1),
    "log": of(torch.log, positive=True),
    "log1p": of(torch.log1p, positive=True),
    "log2": of(torch.log2, positive=True),
    "sqrt": of(torch.sqrt, positive=True),
    "rsqrt": of(torch.rsqrt, positive=True),
    "exp2": of(torch.exp2),
    "log10": of(torch.log10, positive=True),
    "square": of(torch.square),
    "power 3": of(lambda x: x**3),
    "power 2.5": of(lambda x: x**2.5, positive=True),
    "power -1": of(lambda x: x**-1, positive=True),
    "power of a constant base": of(lambda x: 2.0**x),
    "power of a live exponent": of(lambda x: x ** torch.sin(x), positive=True),
    "abs": of(torch.abs),
    "neg": of(torch.neg),
    "sin": of(torch.sin),
    "cos": of(torch.cos),
    "atan": of(torch.atan),
    "tan": of(torch.tan),
    "asin": of(lambda x: torch.asin(0.9 * torch.sin(x))),
    "acos": of(lambda x: torch.acos(0.9 * torch.sin(x))),
    "sinh": of(torch.sinh),
    "cosh": of(torch.cosh),
    "asinh": of(torch.asinh),
    "acosh": of(lambda x: torch.acosh(x + 1), positive=True),
    "atanh": of(lambda x: torch.atanh(0.9 * torch.sin(x))),
    "erf": of(torch.erf),
    "erfc": of(torch.erfc),
    "sinc": of(torch.sinc),
    "lgamma": of(torch.lgamma, positive=True),
    "reciprocal": of(torch.reciprocal, positive=True),
    "clamp": of(lambda x: x.clamp(-0.5, 0.7)),
    "clamp from below": of(lambda x: x.clamp(min=-0.2)),
    "clamp from above": of(lambda x: x.clamp(max=0.3)),
    "clip": of(lambda x: torch.clip(x, -0.5, 0.7)),
    "clamp max": of(lambda x: torch.clamp_max(x, 0.3)),
    "sign times itself": of(lambda x: torch.sign(x) * x),
    "a rounded number beside a live one": of(lambda x: torch.round(x) * x),
    "the smaller of two": of(lambda x: torch.minimum(x, torch.sin(x) + 0.1)),
    "the larger of two": of(lambda x: torch.maximum(x, x.flip(1) * 0.5)),
    "the larger of a number and a constant": _with(torch.maximum, 3, 1, 4),
    "nan to num": of(torch.nan_to_num),
    "nothing at all": Operator(nn.Identity),
    "dropout in eval mode": Operator(nn.Dropout),
    "dropout of channels in eval mode": Operator(nn.Dropout2d),
    "alpha dropout in eval mode": Operator(
        lambda: nn.Sequential(nn.AlphaDropout(), nn.FeatureAlphaDropout())
    ),
    "no derivative at all beside a live one": of(lambda x: torch.cat([torch.sign(x), x], 1)),
    "zeros like it": of(lambda x: torch.cat([torch.zeros_like(x), x], 1)),
    "a detached factor": of(lambda x: x.detach() * torch.sin(x)),
    "to double and back": of(lambda x: torch.sin(x.double()).to(x.dtype)),
}

ARITHMETIC: dict[str, Operator] = {
    "add a number": of(lambda x: x + 0.5),
    "add a constant": _with(lambda x, c: x + c, 3, 5, 4),
    "add a constant a channel": _with(lambda x, c: c + x, 3, 1, 1),
    "add a constant with more axes": _with(lambda x, c: x[:, None] + c, 2, 1, 5, 1, shape=(3, 5, 4)),
    "add a constant that spreads it": _with(lambda x, c: x + c, 3, 5, 4, shape=(3, 1, 4)),
    "add itself": of(lambda x: x + x),
    "add with alpha": of(lambda x: torch.add(x, torch.sin(x), alpha=0.3)),
    "add a live one a channel": of(lambda x: x + torch.sin(x.mean((2, 3), keepdim=True))),
    "add a live one with fewer axes": of(lambda x: torch.sin(x) + x[:, 0, 0, 0][:, None, None, None]),
    "add spread over both": of(lambda x: x[:, :, None, :] + torch.sin(x)[:, None, :, :], (5, 4)),
    "subtract a number": of(lambda x: x - 0.5),
    "subtract from a number": of(lambda x: 0.5 - x),
    "subtract a constant": _with(lambda x, c: x - c, 5, 1),
    "subtract from a constant": _with(lambda x, c: c - x, 5, 1),
    "subtract a live one": of(lambda x: torch.sin(x) - x),
    "subtract with alpha": of(lambda x: torch.sub(x, torch.sin(x), alpha=0.3)),
    "subtract, by its other name": of(lambda x: torch.subtract(torch.sin(x), x, alpha=0.3)),
    "subtract reversed": of(lambda x: torch.rsub(x, torch.sin(x), alpha=0.3)),
    "subtract a mean": of(lambda x: x - x.mean((2, 3), keepdim=True)),
    "multiply by a number": of(lambda x: 1.7 * x),
    "multiply by a constant": _with(lambda x, c: x * c, 3, 5, 4),
    "multiply by a constant a channel": _with(lambda x, c: c * x, 3, 1, 1),
    "multiply by a constant that spreads it": _with(lambda x, c: x * c, 3, 5, 4, shape=(3, 1, 4)),
    "multiply by small integers twice": Operator(
        lambda: Of(lambda m, x: x * m.i * m.i, i=torch.tensor([200, 3, 17, 255], dtype=torch.uint8))
    ),
    "multiply by itself": of(lambda x: x * x),
    "multiply by a function of itself": of(lambda x: x * torch.sigmoid(x)),
    "multiply by a live gate a channel": of(lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True))),
    "multiply by a live gate a pixel": of(lambda x: torch.sigmoid(x[:, :1]) * x),
    "multiply three": of(lambda x: x * torch.sin(x) * torch.cos(x)),
    "multiply, by its other name": of(lambda x: torch.multiply(x, torch.sin(x))),
    "divide, by its other names": of(lambda x: torch.divide(torch.true_divide(x, 1.7), torch.cos(x) + 2)),
    "divide by a number": of(lambda x: x / 1.7),
    "divide by a constant": _with(lambda x, c: x / (c * c + 1), 5, 1),
    "divide a number": of(lambda x: 1.5 / x, positive=True),
    "divide a constant": _with(lambda x, c: c / x, 3, 1, 1, positive=True),
    "divide by a live one": of(lambda x: torch.sin(x) / (x + 1), positive=True),
    "divide by a live sum": of(lambda x: x / x.sum((1, 2, 3), keepdim=True), positive=True),
    "where by a constant mask": _with(lambda x, c: torch.where(c > 2, x, 0.5), 3, 5, 4),
    "where by a live mask": of(lambda x: torch.where(x > 0.1, x * 2, torch.sin(x))),
    "where of a scalar": of(lambda x: torch.where(x > 0.1, x, torch.zeros((), dtype=x.dtype))),
    "masked fill": _with(lambda x, c: x.masked_fill(c > 2, -1.0), 5, 1),
    "lerp": of(lambda x: torch.lerp(x, torch.sin(x), 0.3)),
    "addcmul": of(lambda x: torch.addcmul(x, torch.sin(x), x, value=0.3)),
    "hypot": of(lambda x: torch.hypot(x, torch.sin(x) + 2)),
    "used three times": of(lambda x: (y := torch.sin(x)) + y * y + torch.tanh(y)),
    "a polynomial": of(lambda x: ((x * 0.5 + 1) * x - 2) * x),
    "softmax by hand": of(lambda x: (e := torch.exp(x)) / e.sum(1, keepdim=True), (5, 4)),
    "relu by a mask": of(lambda x: x * (x > 0)),
    "a mean taken away and scaled": of(
        lambda x: (d := x - x.mean(-1, keepdim=True)) / (d.square().mean(-1, keepdim=True) + 1e-5).sqrt(),
    ),
    "normalised to length one": of(lambda x: functional.normalize(x, dim=1)),
}
