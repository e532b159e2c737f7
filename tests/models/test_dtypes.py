"""Conversion tensor by tensor: complex stays complex, integers stay what they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from jacli.models.dtypes import as_dtype, convert, holds, real_dtypes, widest

PAIRS = [(torch.float32, torch.complex64), (torch.float64, torch.complex128)]


class Mixed(nn.Module):
    """A tensor of every kind; the complex buffer and the table are not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.real = nn.Parameter(torch.randn(3))
        self.filter = nn.Parameter(torch.randn(3, dtype=torch.cfloat))
        self.register_buffer("turns", torch.polar(torch.ones(3), torch.arange(3.0)), persistent=False)
        self.register_buffer("count", torch.arange(3))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.out = nn.Linear(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.view_as_real(x * self.real * self.filter * self.turns)
        return y.flatten(1) + self.out(x)


def scripted() -> nn.Module:
    return torch.jit.script(Mixed())


def exported() -> nn.Module:
    return torch.export.export(Mixed().eval(), (torch.randn(2, 3),)).module()


@pytest.mark.parametrize("dtype, complex_dtype", PAIRS, ids=str)
@pytest.mark.parametrize("make", [Mixed, scripted, exported])
def test_each_tensor_by_itself(make, dtype: torch.dtype, complex_dtype: torch.dtype) -> None:
    module = make()
    before = {name: t.clone() for name, t in (*module.named_parameters(), *module.named_buffers())}
    assert convert(module, dtype) is module
    after = dict((*module.named_parameters(), *module.named_buffers()))
    assert len(before) == 7 and set(after) == set(before)
    for name, tensor in before.items():
        expected = {torch.float32: dtype, torch.complex64: complex_dtype}.get(tensor.dtype, tensor.dtype)
        assert after[name].dtype == expected
        assert torch.equal(after[name].to(tensor.dtype), tensor)
    x = torch.randn(2, 3, dtype=dtype)
    assert module(x).dtype == dtype or make is exported  # whose program may name dtypes


def test_recurrent_layers_keep_their_flat_weights() -> None:
    layer = convert(nn.LSTM(3, 2), torch.float64)
    assert layer(torch.randn(4, 1, 3, dtype=torch.float64))[0].dtype == torch.float64
    assert layer._flat_weights[0] is layer.weight_ih_l0


def test_back_and_forth_and_half() -> None:
    module = Mixed()
    filter_before = module.filter.detach().clone()
    convert(convert(module, torch.float64), torch.float32)
    assert torch.equal(module.filter, filter_before)
    assert as_dtype(torch.tensor(1 + 2j), torch.float64) == 1 + 2j
    assert as_dtype(torch.ones(2, dtype=torch.bfloat16), torch.float32).dtype == torch.float32
    assert as_dtype(torch.ones(2, dtype=torch.int8), torch.float32).dtype == torch.int8


def test_only_some_and_shared_parameters() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).half(), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    assert real_dtypes(module) == {torch.float16, torch.float32}
    convert(module, torch.float64, only={torch.float32})
    assert real_dtypes(module) == {torch.float16, torch.float64}
    assert module[2].weight is module[0].weight


def test_order_of_dtypes() -> None:
    assert widest({torch.float16, torch.float64, torch.float32}) == torch.float64
    assert holds(torch.float32, torch.bfloat16) and holds(torch.float32, torch.float16)
    assert not holds(torch.float16, torch.bfloat16) and not holds(torch.bfloat16, torch.float16)
    assert holds(torch.float64, torch.float32) and not holds(torch.float32, torch.float64)
