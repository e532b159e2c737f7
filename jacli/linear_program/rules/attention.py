"""The rule of attention.

Axes: n samples and heads, l queries, s keys, e features of a query, v features of a value.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jacli.linear_program.call import Call, Inner, NoRule
from jacli.linear_program.rule import rule
from jacli.linear_program.rules.products import LeftOperand, RightOperand
from jacli.linear_program.rules.reductions import Softmax


@rule("scaled_dot_product_attention")
def attention(call: Call) -> None:
    """``y = p v, p = softmax(s), s = a q kᵀ + bias;  dy = dp v + p dv, ds = a (dq kᵀ + q dkᵀ)``.

    The forward pass ran the model's own kernel, which keeps no weights; they are recomputed here.

    >>> from jacli import jacobian
    >>> import torch
    >>> from torch.nn import functional as F
    >>> x = torch.ones(1, 1, 2, 3)
    >>> jacobian(lambda q: F.scaled_dot_product_attention(q, q, q), x, method="adjoint").shape
    torch.Size([1, 1, 2, 3, 1, 2, 3])
    """
    if call["dropout_p"] or (call.has("enable_gqa") and call["enable_gqa"]):
        raise NoRule
    call.only("query", "key", "value")
    q, k, v = call["query"], call["key"], call["value"]  # n l e, n s e, n s v
    batch = call.out.shape[:-2]
    if any(t.shape[:-2] != batch for t in (q, k, v)):
        raise NoRule
    scale = call["scale"] if call["scale"] is not None else 1 / math.sqrt(q.shape[-1])
    weights = _weights(call, q @ k.mT * scale)
    dtype = call.settings.dtype
    scores = Inner()
    call.edge("query", LeftOperand((k * scale).to(dtype).mT), into=scores)
    call.edge("key", SwappedLastAxes(), RightOperand((q * scale).to(dtype)), into=scores)
    call.edge(scores, Softmax(weights.to(dtype), -1), LeftOperand(v.to(dtype)))
    call.edge("value", RightOperand(weights.to(dtype)))


def _weights(call: Call, scores: Tensor) -> Tensor:
    """Softmax of the masked scores, ``n l s``.

    Raises:
        NoRule: A query attends to no key; what torch returns then differs from kernel to kernel.
    """
    if call["is_causal"]:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    mask = call["attn_mask"]
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1)
    if mask is not None and bool(weights.isnan().any()):
        raise NoRule
    return weights


class SwappedLastAxes:
    """The last two axes swapped."""

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        return g.mT  # ... l s -> ... s l

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        return t.mT
