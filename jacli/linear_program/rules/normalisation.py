"""Rules of normalisations: by constants (one scale per channel), and by the statistics of each sample.

Axes: n samples, c channels, h w pixels; m numbers are normalised together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jacli.linear_program.call import Call, NoRule
from jacli.linear_program.local_map import Diagonal, LocalMap, Reshaped
from jacli.linear_program.rule import linear, rule


@linear("batch_norm", "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training")
def batch_norm(call: Call) -> Sequence[LocalMap]:
    """``y_c = s_c (x_c - mean_c) + b_c;  dy_c = s_c dx_c``, s_c = w_c / sqrt(var_c + eps), in eval mode.

    >>> from jacli import jacobian
    >>> import torch
    >>> from torch import nn
    >>> jacobian(nn.BatchNorm1d(2, eps=0).eval(), torch.ones(1, 2), method="adjoint")[0].tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    call.only("input")
    trained = call["training"] if call.has("training") else False
    if trained or call["running_var"] is None or call.item not in (None, 0):
        raise NoRule
    eps = call["epsilon" if call.has("epsilon") else "eps"]  # cuDNN's operator spells it out
    factors = (call["running_var"] + eps).rsqrt()
    keys = [call.key("running_var")]
    if call["weight"] is not None:
        factors = factors * call["weight"]
        keys.append(call.key("weight"))
    return [call.scale(factors, axis=1 - call.out.dim(), keys=keys)]


@dataclass(frozen=True)
class Normalised:
    """``z = (x - mean) / s`` over the last axis, s = sqrt(var + eps):  ``dz = (I - 1 1ᵀ/m - z zᵀ/m) dx / s``.

    J is symmetric, so that the vjp and the jvp are the same.

    Attributes:
        z: ``(..., m)``.
        inverse: ``1 / sqrt(var + eps)``, ``(..., 1)``.
    """

    z: Tensor
    inverse: Tensor

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        m = self.z.shape[-1]
        along = torch.linalg.vecdot(g, self.z.expand_as(g)).unsqueeze(-1)  # k ... m, ... m -> k ... 1
        centred = g.sub_(g.mean(-1, keepdim=True)) if may_overwrite else g - g.mean(-1, keepdim=True)
        return centred.addcmul_(self.z.expand_as(g), along, value=-1 / m).mul_(self.inverse)

    jvp = vjp


def _normalised(call: Call, rows: Tensor) -> Normalised:
    """The normalisation of rows ``(..., m)``, with statistics in the model's dtype."""
    variance, mean = torch.var_mean(rows, -1, correction=0, keepdim=True)
    inverse = (variance + call["eps"]).rsqrt()
    dtype = call.settings.dtype
    return Normalised(((rows - mean) * inverse).to(dtype), inverse.to(dtype))


@rule("layer_norm", "native_layer_norm")
def layer_norm(call: Call) -> None:
    """``y = w * z + b, z = (x - mean) / s over the last axes;  dy = w * dz`` (`Normalised`).

    >>> from jacli import jacobian
    >>> import torch
    >>> from torch import nn
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> jacobian(nn.LayerNorm(2, eps=0), x, method="adjoint").abs().max().item() < 1e-5
    True
    """
    call.only("input")
    if call.item not in (None, 0):
        raise NoRule
    x, axes = call["input"], len(call["normalized_shape"])
    rows = x.flatten(-axes) if axes > 1 else x
    maps: list[LocalMap] = [_normalised(call, rows)]
    if axes > 1:
        maps = [Reshaped(x.shape, rows.shape), *maps, Reshaped(rows.shape, x.shape)]
    if call["weight"] is not None and axes == 1:
        maps.append(call.scale(call["weight"], axis=-1, keys=[call.key("weight")]))
    elif call["weight"] is not None:
        maps.append(Diagonal(call["weight"].expand(x.shape)))
    call.edge("input", *maps)


@rule("group_norm", "native_group_norm")
def group_norm(call: Call) -> None:
    """``y_c = w_c z_c + b_c, z = (x - mean) / s over a group;  dy_c = w_c dz_c`` (`Normalised`).

    >>> from jacli import jacobian
    >>> import torch
    >>> from torch import nn
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> jacobian(nn.GroupNorm(1, 2, eps=0), x, method="adjoint").abs().max().item() < 1e-5
    True
    """
    call.only("input")
    groups = call["num_groups"] if call.has("num_groups") else call["group"]
    if call.item not in (None, 0):
        raise NoRule
    x = call["input"]
    rows = x.reshape(x.shape[0], groups, -1)  # n (g c) h w -> n g (c h w)
    maps: list[LocalMap] = [Reshaped(x.shape, rows.shape), _normalised(call, rows)]
    maps.append(Reshaped(rows.shape, x.shape))
    if call["weight"] is not None:
        maps.append(call.scale(call["weight"], axis=1 - x.dim(), keys=[call.key("weight")]))
    call.edge("input", *maps)
