"""The reference itself, against a linear map and central differences."""

import torch
from torch import nn

from tests.cases import build
from tests.reference import reference_jacobian


def test_a_linear_map_is_its_own_jacobian():
    layer = nn.Linear(5, 7).double()
    found = reference_jacobian(layer, torch.randn(2, 5, dtype=torch.float64))
    assert torch.equal(found, layer.weight.detach().T.expand(2, 5, 7))


def test_central_differences():
    module, x, _ = build("image_to_image", torch.float64)
    step = 1e-6
    with torch.no_grad():
        columns = [
            (module(x + step * unit) - module(x - step * unit)).flatten(1) / (2 * step)
            for unit in torch.eye(x[0].numel(), dtype=x.dtype).reshape(-1, 1, *x.shape[1:])
        ]
    assert torch.allclose(reference_jacobian(module, x), torch.stack(columns, 1), atol=1e-7)
