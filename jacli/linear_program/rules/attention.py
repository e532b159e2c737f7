"""The rule of attention, ``softmax(scale q k' + bias) v``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jacli.linear_program.call import Call, Inner, NoRule
from jacli.linear_program.rules.products import LeftOperand, RightOperand
from jacli.linear_program.rules.reductions import Softmax


def attention(call: Call) -> None:
    """Two products and a softmax between; its three operands meet in the scores.

    The forward pass ran the model's own kernel; the weights are computed again, of the same operands.
    """
    if call["dropout_p"] or (call.has("enable_gqa") and call["enable_gqa"]):
        raise NoRule
    call.only("query", "key", "value")
    q, k, v = call["query"], call["key"], call["value"]
    batch = call.out.shape[:-2]
    if any(t.shape[:-2] != batch for t in (q, k, v)):
        raise NoRule
    scale = call["scale"] if call["scale"] is not None else 1 / math.sqrt(q.shape[-1])
    scores = q @ k.mT * scale
    if call["is_causal"]:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    mask = call["attn_mask"]
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1)
    if mask is not None and bool(
        weights.isnan().any()
    ):  # a row that attends to nothing: torch has its own idea
        raise NoRule
    dtype = call.passes.dtype
    inner = Inner()
    softmax = Softmax(weights.to(dtype), -1)
    call.edge("query", LeftOperand((k * scale).to(dtype).mT), into=inner)
    call.edge("key", _Transposed(), RightOperand((q * scale).to(dtype)), into=inner)
    call.edge(inner, softmax, LeftOperand(v.to(dtype)))
    call.edge("value", RightOperand(weights.to(dtype)))


class _Transposed:
    """The last two axes swapped."""

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        return g.mT

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        return t.mT
