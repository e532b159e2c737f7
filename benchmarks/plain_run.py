"""What a PyTorch user would write in place of ``jacli compute MODEL INPUTS -o OUT``, for startup.py."""

from __future__ import annotations

import sys

import h5py
import numpy
import torch


def main(model_path: str, inputs_path: str, out_path: str) -> None:
    """Jacobians by one reverse pass per class, their singular values, and a file with both."""
    model = torch.jit.load(model_path).eval()
    x = torch.from_numpy(numpy.load(inputs_path)).requires_grad_(True)
    y = model(x)
    rows = [torch.autograd.grad(y[:, k].sum(), x, retain_graph=True)[0] for k in range(y.shape[1])]
    jacobian = torch.stack(rows, dim=-1)
    singular_values = torch.linalg.svdvals(jacobian.flatten(1, -2))
    with h5py.File(out_path, "w") as file:
        file["jacobian"] = jacobian.numpy()
        file["inputs"] = x.detach().numpy()
        file["outputs"] = y.detach().numpy()
        file["singular_values"] = singular_values.numpy()


if __name__ == "__main__":
    main(*sys.argv[1:])
