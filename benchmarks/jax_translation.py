"""A PyTorch network as a JAX function with the same weights: its ATen graph, operator by operator.

Only the operators of ``benchmarks/workloads.py``; another raises `NotTranslated` with its name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory of the GPU, too
import jax  # type: ignore[import-not-found,unused-ignore]
import jax.numpy as jnp  # type: ignore[import-not-found,unused-ignore]
from jax import lax

jax.config.update("jax_default_matmul_precision", "highest")  # no TF32: as jacli and the other peers
Array = Any
"""A ``jax.Array``, or a tracer of one."""


class NotTranslated(Exception):
    """The graph has an operator that is missing here."""


def translate(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Callable[[list[Array], Array], Array], list[Array]]:
    """``function`` for inputs of the very shape of ``x``; both on the CPU, whose operators are known here.

    Returns:
        ``apply(parameters, x)`` and the parameters: arguments, because constants in a jitted function are
        folded, at length, by the compiler.

    Raises:
        NotTranslated: An operator is missing.
    """
    if x.dtype == torch.float64:
        jax.config.update("jax_enable_x64", True)
    with torch.no_grad():
        graph = make_fx(functionalize(function, remove="mutations"))(x.detach())
    graph.graph.eliminate_dead_code()
    names = [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    parameters = [jnp.asarray(getattr(graph, name).detach().numpy()) for name in names]
    missing = sorted(
        str(node.target)
        for node in graph.graph.nodes
        if node.op == "call_function" and _name(node) not in _OPERATORS
    )
    if missing:
        raise NotTranslated(", ".join(dict.fromkeys(missing)))

    def apply(values: list[Array], point: Array) -> Array:
        known = dict(zip(names, values, strict=True))
        return _run(graph.graph, known, point)

    return apply, parameters


def _run(graph: fx.Graph, parameters: dict[str, Array], x: Array) -> Array:
    values: dict[fx.Node, Array] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = x
        elif node.op == "get_attr":
            values[node] = parameters[str(node.target)]
        elif node.op == "output":
            return fx.map_arg(node.args[0], values.__getitem__)
        else:
            arguments = fx.map_arg(node.args, values.__getitem__)
            options = {key: value for key, value in node.kwargs.items() if key not in _IGNORED}
            values[node] = _OPERATORS[_name(node)](*arguments, **fx.map_arg(options, values.__getitem__))
    raise AssertionError("a graph without output")


_IGNORED = {"dtype", "layout", "device", "pin_memory", "memory_format"}


def _name(node: fx.Node) -> str:
    """``convolution`` of ``aten.convolution.default``; overloads share an entry."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket.__name__)
    return str(getattr(node.target, "__name__", node.target))


def _pair(values: Sequence[int], default: int | None = None) -> tuple[int, int]:
    if not values and default is not None:
        return (default, default)
    return (values[0], values[-1])


def _convolution(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Array:
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    if not transposed:
        y = lax.conv_general_dilated(
            x,
            weight,
            window_strides=stride,
            padding=[(p, p) for p in padding],
            rhs_dilation=dilation,
            feature_group_count=groups,
        )
    else:
        if groups != 1:
            raise NotTranslated("transposed convolution in groups")
        reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        extra = _pair(output_padding)
        y = lax.conv_general_dilated(
            x,
            jnp.flip(weight, (2, 3)).swapaxes(0, 1),  # (in, out, h, w) -> (out, in, h, w)
            window_strides=(1, 1),
            padding=[(r - p, r - p + e) for r, p, e in zip(reach, padding, extra, strict=True)],
            lhs_dilation=stride,
            rhs_dilation=dilation,
        )
    return y if bias is None else y + bias[:, None, None]


def _max_pool(
    x: Array,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Array, None]:
    if ceil_mode:
        raise NotTranslated("max_pool2d with ceil_mode")
    window = (1, 1, *_pair(kernel))
    strides = (1, 1, *_pair(stride or kernel))
    pads = [(0, 0), (0, 0)] + [(p, p) for p in _pair(padding)]
    y = lax.reduce_window(
        x, -jnp.inf, lax.max, window, strides, pads, window_dilation=(1, 1, *_pair(dilation))
    )
    return y, None


def _batch_norm_eval(x: Array, weight: Array, bias: Array, mean: Array, variance: Array, eps: float) -> Array:
    scale = weight * lax.rsqrt(variance + eps)
    return (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]


def _native_batch_norm(
    x: Array,
    weight: Array,
    bias: Array,
    mean: Array,
    variance: Array,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Array, None, None]:
    if training:
        raise NotTranslated("native_batch_norm in training mode")
    return _batch_norm_eval(x, weight, bias, mean, variance, eps), None, None


def _layer_norm(
    x: Array, shape: Sequence[int], weight: Array, bias: Array, eps: float
) -> tuple[Array, None, None]:
    axes = tuple(range(-len(shape), 0))
    centred = x - x.mean(axes, keepdims=True)
    scale = lax.rsqrt((centred**2).mean(axes, keepdims=True) + eps)
    return centred * scale * weight + bias, None, None


def _attention(
    q: Array, k: Array, v: Array, dropout: float = 0.0, causal: bool = False, **options: Any
) -> tuple[Array, None]:
    if dropout or causal or options.get("attn_mask") is not None:
        raise NotTranslated("attention with a mask or dropout")
    scale = options.get("scale") or 1 / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) * scale, axis=-1)
    return weights @ v, None


def _expand(x: Array, sizes: Sequence[int]) -> Array:
    own = (1,) * (len(sizes) - x.ndim) + tuple(x.shape)
    return jnp.broadcast_to(x.reshape(own), [o if s == -1 else s for s, o in zip(sizes, own, strict=True)])


def _slice(x: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    axis = dim % x.ndim
    return x[(slice(None),) * axis + (slice(start, None if end is None else min(end, x.shape[axis]), step),)]


def _pad(x: Array, pads: Sequence[int], value: float = 0.0) -> Array:
    pairs = [(pads[i], pads[i + 1]) for i in range(0, len(pads), 2)][::-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - len(pairs)) + pairs, constant_values=value)


def _upsample(x: Array, size: Sequence[int] | None, *scales: Any) -> Array:
    target = size or [round(n * s) for n, s in zip(x.shape[2:], _flat(scales), strict=True)]
    times = [t // n for t, n in zip(target, x.shape[2:], strict=True)]
    if [n * t for n, t in zip(x.shape[2:], times, strict=True)] != list(target):
        raise NotTranslated("upsample_nearest2d by a fraction")
    return jnp.repeat(jnp.repeat(x, times[0], axis=2), times[1], axis=3)


def _flat(scales: tuple[Any, ...]) -> list[float]:
    return list(scales[0]) if isinstance(scales[0], (list, tuple)) else list(scales)


def _addmm(bias: Array, a: Array, b: Array) -> Array:
    return a @ b + bias


def _gelu(x: Array, approximate: str = "none") -> Array:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


def _mean(x: Array, dim: Sequence[int], keepdim: bool = False) -> Array:
    return x.mean(tuple(dim), keepdims=keepdim)


def _total(x: Array, dim: Sequence[int], keepdim: bool = False) -> Array:
    return x.sum(tuple(dim), keepdims=keepdim)


def _squeeze(x: Array, dim: int | Sequence[int]) -> Array:
    axes = [dim] if isinstance(dim, int) else list(dim)
    return jnp.squeeze(x, tuple(axis for axis in axes if x.shape[axis] == 1))


def _same(x: Array) -> Array:
    return x


_OPERATORS: dict[str, Callable[..., Any]] = {
    "convolution": _convolution,
    "max_pool2d_with_indices": _max_pool,
    "native_batch_norm": _native_batch_norm,
    "native_layer_norm": _layer_norm,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "addmm": _addmm,
    "mm": jnp.matmul,
    "bmm": jnp.matmul,
    "t": jnp.transpose,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": _gelu,
    "add": jnp.add,
    "mul": jnp.multiply,
    "mean": _mean,
    "sum": _total,
    "expand": _expand,
    "slice": _slice,
    "constant_pad_nd": _pad,
    "upsample_nearest2d": _upsample,
    "squeeze": _squeeze,
    "unsqueeze": jnp.expand_dims,
    "view": jnp.reshape,
    "_unsafe_view": jnp.reshape,
    "reshape": jnp.reshape,
    "permute": jnp.transpose,
    "transpose": jnp.swapaxes,
    "select": lambda x, axis, index: jnp.take(x, index, axis=axis),
    "cat": lambda parts, axis=0: jnp.concatenate(parts, axis),
    "clone": _same,
    "alias": _same,
    "detach": _same,
    "getitem": lambda parts, index: parts[index],
}
