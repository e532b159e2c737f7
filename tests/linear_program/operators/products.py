"""Matrix products of a constant and a live factor, or of two live factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tests.linear_program.operators.case import Of, Operator, of


def _with(function: Any, *sizes: int, shape: tuple[int, ...], **options: Any) -> Operator:
    """A case of a function of the input and one constant ``w`` of these sizes."""
    return Operator(lambda: Of(lambda m, x: function(x, m.w), w=torch.randn(*sizes)), shape, **options)


PRODUCTS: dict[str, Operator] = {
    "linear": Operator(lambda: nn.Linear(5, 7), (5,)),
    "linear without bias": Operator(lambda: nn.Linear(5, 7, bias=False), (5,)),
    "linear to one number": Operator(lambda: nn.Linear(5, 1), (5,)),
    "linear of one number": Operator(lambda: nn.Linear(1, 5), (1,)),
    "linear of rows": Operator(lambda: nn.Linear(4, 7), (5, 4)),
    "linear of rows without bias": Operator(lambda: nn.Linear(4, 7, bias=False), (5, 4)),
    "linear of pixels": Operator(lambda: nn.Linear(4, 6), (3, 5, 4)),
    "linear of transposed rows": Operator(
        lambda: Of(lambda m, x: m.linear(x.mT).mT, linear=nn.Linear(5, 7)), (5, 4)
    ),
    "linear by a vector": _with(functional.linear, 4, shape=(5, 4)),
    "linear twice with one matrix": Operator(
        lambda: Of(lambda m, x: m.linear(torch.tanh(m.linear(x))), linear=nn.Linear(5, 5)), (5,)
    ),
    "linear after flatten": Operator(lambda: nn.Sequential(nn.Flatten(), nn.Linear(60, 7))),
    "linear before unflatten": Operator(
        lambda: nn.Sequential(nn.Linear(5, 24), nn.Unflatten(1, (2, 3, 4))), (5,)
    ),
    "linear and flatten again": Operator(lambda: nn.Sequential(nn.Linear(4, 6), nn.Flatten()), (5, 4)),
    "bilinear": Operator(
        lambda: Of(lambda m, x: m.form(x[:, :3], x[:, 3:]), form=nn.Bilinear(3, 4, 5)), (7,)
    ),
    "mm": _with(torch.mm, 5, 7, shape=(5,)),
    "addmm": Operator(
        lambda: Of(
            lambda m, x: torch.addmm(m.b, x, m.w, beta=0.5, alpha=2), w=torch.randn(5, 7), b=torch.randn(7)
        ),
        (5,),
    ),
    "addmm onto a live matrix": Operator(
        lambda: Of(
            lambda m, x: torch.addmm(x, m.left(x), m.w, beta=0.5, alpha=2),
            left=nn.Linear(5, 3),
            w=torch.randn(3, 5),
        ),
        (5,),
    ),
    "mv": _with(torch.mv, 5, shape=(5,)),
    "matmul by a matrix": _with(torch.matmul, 4, 6, shape=(5, 4)),
    "matmul of pixels by a matrix": _with(torch.matmul, 4, 6, shape=(3, 5, 4)),
    "matmul by a vector": _with(torch.matmul, 4, shape=(5, 4)),
    "matmul of a matrix": _with(lambda x, w: w @ x, 6, 5, shape=(5, 4)),
    "matmul of a matrix and pixels": _with(lambda x, w: w @ x, 6, 5, shape=(3, 5, 4)),
    "matmul of a vector": _with(lambda x, w: w @ x, 5, shape=(5, 4)),
    "matmul by a matrix a channel": _with(torch.matmul, 3, 4, 6, shape=(3, 5, 4)),
    "matmul of a matrix a channel": _with(lambda x, w: w @ x, 3, 6, 5, shape=(3, 5, 4)),
    "matmul by a matrix a channel, spread over them": _with(torch.matmul, 3, 4, 6, shape=(1, 5, 4)),
    "matmul of two live matrices": of(lambda x: x @ torch.sin(x).mT, (5, 4)),
    "matmul of two live stacks": of(lambda x: torch.cos(x).mT @ x, (3, 5, 4)),
    "matmul of two live stacks, one spread": of(lambda x: x @ x[:, :1].mT, (3, 5, 4)),
    "matmul of a live matrix and a live vector": of(lambda x: x @ x.mean(1, keepdim=True).mT, (5, 4)),
    "matmul of a matrix by itself": of(lambda x: x @ x, (4, 4)),
    "bmm of two live matrices": of(lambda x: torch.bmm(x.mT, torch.sin(x)), (5, 4)),
    "bmm by a constant": Operator(
        lambda: Of(lambda m, x: torch.bmm(x, m.w.expand(x.shape[0], 4, 6)), w=torch.randn(1, 4, 6)), (5, 4)
    ),
    "baddbmm": of(lambda x: torch.baddbmm(x, torch.sin(x), torch.cos(x[:, :4]), beta=0.5, alpha=2), (5, 4)),
    "einsum of a constant": _with(lambda x, w: torch.einsum("bchw,cdw->bdh", x, w), 3, 6, 4, shape=(3, 5, 4)),
    "einsum of two live tensors": of(lambda x: torch.einsum("bcw,bdw->bcd", x, torch.sin(x)), (5, 4)),
    "einsum that transposes": of(lambda x: torch.einsum("bcw->bwc", x), (5, 4)),
    "einsum of a diagonal scale": _with(lambda x, w: torch.einsum("bcw,c->bwc", x, w), 5, shape=(5, 4)),
    "tensordot": _with(lambda x, w: torch.tensordot(x, w, dims=([1, 3], [1, 0])), 4, 3, 6, shape=(3, 5, 4)),
    "outer product a sample": of(lambda x: x[:, :, None] * torch.sin(x)[:, None, :], (5,)),
    "inner product a sample": of(lambda x: (x * torch.sin(x)).sum(1, keepdim=True), (5,)),
    "cosine similarity": of(lambda x: functional.cosine_similarity(x[:, :3], x[:, 2:], dim=1), (5, 4)),
    "distances": of(
        lambda x: torch.cdist(x, x[:, :2] + 1),
        (5, 4),
        forward=False,
    ),
    "determinant": of(lambda x: torch.linalg.det(x)[:, None], (4, 4)),
}
