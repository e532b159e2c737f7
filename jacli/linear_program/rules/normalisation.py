"""Rules of normalisations: by constants (a scale a channel) and by a sample's own statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jacli.linear_program.call import Call, NoRule
from jacli.linear_program.local_map import Diagonal, LocalMap, Reshaped


def batch_norm(call: Call) -> None:
    """When evaluating, a constant scale a channel, ``weight / sqrt(var + eps)``."""
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
    dim = call.out.dim()
    call.edge("input", call.scale(factors, axis=1 - dim, keys=keys))


@dataclass(frozen=True)
class Normalised:
    """``z = (x - mean) / sqrt(var + eps)`` over the last axis: J = (I - 11'/n - zz'/n) / sqrt(var + eps).

    Symmetric: what pulls a cotangent pushes a tangent.

    Attributes:
        z: ``(..., n)``.
        inverse: ``1 / sqrt(var + eps)``, ``(..., 1)``.
    """

    z: Tensor
    inverse: Tensor

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        n = self.z.shape[-1]
        along = torch.linalg.vecdot(g, self.z.expand_as(g)).unsqueeze(-1)
        centred = g.sub_(g.mean(-1, keepdim=True)) if mine else g - g.mean(-1, keepdim=True)
        return centred.addcmul_(self.z.expand_as(g), along, value=-1 / n).mul_(self.inverse)

    push = pull


def layer_norm(call: Call) -> None:
    """Over the last axes, then a constant scale and shift."""
    call.only("input")
    if call.item not in (None, 0):
        raise NoRule
    x, axes = call["input"], len(call["normalized_shape"])
    rows = x.flatten(-axes) if axes > 1 else x
    variance, mean = torch.var_mean(rows, -1, correction=0, keepdim=True)
    inverse = (variance + call["eps"]).rsqrt()
    dtype = call.passes.dtype
    maps: list[LocalMap] = [Normalised(((rows - mean) * inverse).to(dtype), inverse.to(dtype))]
    if axes > 1:
        maps = [Reshaped(x.shape, rows.shape), *maps, Reshaped(rows.shape, x.shape)]
    if call["weight"] is not None and axes == 1:
        maps.append(call.scale(call["weight"], axis=-1, keys=[call.key("weight")]))
    elif call["weight"] is not None:
        maps.append(Diagonal(call["weight"].expand(x.shape)))
    call.edge("input", *maps)


def group_norm(call: Call) -> None:
    """Over groups of channels and all pixels of a sample, then a constant scale a channel."""
    call.only("input")
    groups = call["num_groups"] if call.has("num_groups") else call["group"]
    if call.item not in (None, 0):
        raise NoRule
    x = call["input"]
    rows = x.reshape(x.shape[0], groups, -1)
    variance, mean = torch.var_mean(rows, -1, correction=0, keepdim=True)
    inverse = (variance + call["eps"]).rsqrt()
    dtype = call.passes.dtype
    normalised = Normalised(((rows - mean) * inverse).to(dtype), inverse.to(dtype))
    maps: list[LocalMap] = [Reshaped(x.shape, rows.shape), normalised, Reshaped(rows.shape, x.shape)]
    if call["weight"] is not None:
        maps.append(call.scale(call["weight"], axis=1 - x.dim(), keys=[call.key("weight")]))
    call.edge("input", *maps)
