"""Attention, and layers that torch composes of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.linear_program.operators.case import Of, Operator, of

ROUNDED = 1e-6
"""The traced graph has the plain kernels of attention in place of the fused ones, which round differently."""


def _heads(x: Tensor) -> Tensor:
    """(b, 5, 6) into two heads of (b, 2, 5, 3)."""
    return x.unflatten(2, (2, 3)).transpose(1, 2)


def _attended(**options: Any) -> Operator:
    def attend(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = map(_heads, m.project(x).chunk(3, -1))
        return functional.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2)

    return Operator(lambda: Of(attend, project=nn.Linear(6, 18)), (5, 6), outputs=ROUNDED)


def _masked(kind: str) -> Operator:
    def attend(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = map(_heads, m.project(x).chunk(3, -1))
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=m.mask)

    masks = {
        "numbers": lambda: torch.randn(5, 5),
        "numbers a head": lambda: torch.randn(1, 2, 5, 5),
        "truth": lambda: torch.rand(5, 5).fill_diagonal_(1) > 0.4,
    }
    return Operator(lambda: Of(attend, project=nn.Linear(6, 18), mask=masks[kind]()), (5, 6), outputs=ROUNDED)


def _to_constants(m: nn.Module, x: Tensor) -> Tensor:
    keys, values = (t.expand(x.shape[0], -1, -1, -1) for t in (m.keys, m.values))
    return functional.scaled_dot_product_attention(_heads(x), keys, values)


def _from_constants(m: nn.Module, x: Tensor) -> Tensor:
    queries = m.queries.expand(x.shape[0], -1, -1, -1)
    return functional.scaled_dot_product_attention(queries, _heads(x), _heads(torch.sin(x)))


def _by_hand(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = m.project(x).reshape(-1, 5, 3, 2, 3).permute(2, 0, 3, 1, 4)
    weights = ((q * 3**-0.5) @ k.transpose(-2, -1) + m.bias).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(-1, 5, 6)


def _encoder(**options: Any) -> Operator:
    return Operator(
        lambda: nn.TransformerEncoderLayer(6, 2, 9, batch_first=True, **options),
        (5, 6),
        outputs=ROUNDED,
    )


ATTENTION: dict[str, Operator] = {
    "attention": _attended(),
    "causal attention": _attended(is_causal=True),
    "attention of a given scale": _attended(scale=0.3),
    "attention with added numbers": _masked("numbers"),
    "attention with added numbers a head": _masked("numbers a head"),
    "attention with a mask": _masked("truth"),
    "attention of one head on itself": of(
        lambda x: functional.scaled_dot_product_attention(x, x, x), (5, 4), outputs=ROUNDED
    ),
    "attention to constants": Operator(
        lambda: Of(_to_constants, keys=torch.randn(1, 2, 4, 3), values=torch.randn(1, 2, 4, 3)),
        (5, 6),
        outputs=ROUNDED,
    ),
    "attention from constants": Operator(
        lambda: Of(_from_constants, queries=torch.randn(1, 2, 4, 3)), (5, 6), outputs=ROUNDED
    ),
    "attention by hand": Operator(
        lambda: Of(_by_hand, project=nn.Linear(6, 18), bias=torch.randn(2, 5, 5)), (5, 6)
    ),
    "multi-head attention": Operator(
        lambda: Of(
            lambda m, x: m.attention(x, x, x)[0], attention=nn.MultiheadAttention(6, 2, batch_first=True)
        ),
        (5, 6),
        outputs=ROUNDED,
    ),
    "multi-head attention without its weights": Operator(
        lambda: Of(
            lambda m, x: m.attention(x, x, x, need_weights=False)[0],
            attention=nn.MultiheadAttention(6, 2, batch_first=True),
        ),
        (5, 6),
        outputs=ROUNDED,
    ),
    "multi-head attention, the batch second": Operator(
        lambda: Of(
            lambda m, x: m.attention(y := x.transpose(0, 1), y, y)[0].transpose(0, 1),
            attention=nn.MultiheadAttention(6, 3),
        ),
        (5, 6),
        outputs=ROUNDED,
    ),
    "multi-head attention to other things": Operator(
        lambda: Of(
            lambda m, x: m.attention(x[:, :2], y := m.other(x), y)[0],
            attention=nn.MultiheadAttention(6, 2, kdim=4, vdim=4, batch_first=True),
            other=nn.Linear(6, 4),
        ),
        (5, 6),
        outputs=ROUNDED,
    ),
    "transformer layer": _encoder(),
    "transformer layer, norms first": _encoder(norm_first=True, activation="gelu"),
    "recurrent layer": Operator(
        lambda: Of(lambda m, x: m.recurrent(x)[0], recurrent=nn.RNN(4, 6, batch_first=True)),
        (5, 4),
        outputs=ROUNDED,
    ),
    "long short-term memory": Operator(
        lambda: Of(
            lambda m, x: m.recurrent(x)[0],
            recurrent=nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True),
        ),
        (5, 4),
        outputs=ROUNDED,
    ),
    "gated recurrent units": Operator(
        lambda: Of(lambda m, x: m.recurrent(x)[0][:, -1], recurrent=nn.GRU(4, 6, batch_first=True)),
        (5, 4),
        outputs=ROUNDED,
    ),
    "long short-term memory by cells": Operator(
        lambda: Of(lambda m, x: torch.cat(m.cell(x[:, 1], m.cell(x[:, 0])), 1), cell=nn.LSTMCell(4, 6)),
        (5, 4),
    ),
    "grid sampling": of(
        lambda x: functional.grid_sample(
            x[:, :, :, :3], torch.tanh(x[:, :2, :, :3]).permute(0, 2, 3, 1), align_corners=False
        ),
        (3, 5, 4),
        forward=False,
    ),
}
