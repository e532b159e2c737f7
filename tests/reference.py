"""The reference Jacobian: a double loop over `torch.autograd.grad`, one number at a time, in float64."""

import torch
from torch import Tensor


def reference_jacobian(model, x: Tensor) -> Tensor:
    """``J[b, i, o] = d model(x)[b].flatten()[o] / d x[b].flatten()[i]``, shape (batch, n_in, n_out).

    cuDNN is off meanwhile: its recurrent layers have no backward pass in eval mode.
    """
    before, torch.backends.cudnn.enabled = torch.backends.cudnn.enabled, False
    try:
        return _double_loop(model, x)
    finally:
        torch.backends.cudnn.enabled = before


def _double_loop(model, x: Tensor) -> Tensor:
    samples = []
    for b in range(len(x)):
        point = x[b : b + 1].clone().requires_grad_(True)
        columns = []
        for o in range(model(point).numel()):
            (gradient,) = torch.autograd.grad(model(point).flatten()[o], point)
            columns.append(gradient.flatten())
        samples.append(torch.stack(columns, dim=1))
    return torch.stack(samples)
