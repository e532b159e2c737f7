"""The rules: one an operator, from the operator's call to the derivative it leaves.

A rule is a function of a `jacli.linear_program.call.Call`: it reads the operator's arguments by their names
and says, with `Call.edge`, by which local linear maps each operand moves the result.  Where the operator is
called in a way that it does not cover it raises `NoRule`; then, and where there is no rule, the operator
runs as torch differentiates it (`jacli.linear_program.autograd_fallback`).

A new rule is a function and a line here; its cases in ``tests/linear_program/operators`` hold it against
the plain pullback.  Names are ATen's, without overloads (``torch.ops.aten.<name>``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module

from torch import fx

from jacli.linear_program.call import Call
from jacli.linear_program.graph import operator_name

RULES = {
    # The operand as it is, or its numbers in other places.
    "structure:same": "clone contiguous alias lift_fresh_copy to _to_copy type_as",
    "structure:dropout": "dropout feature_dropout alpha_dropout feature_alpha_dropout",
    "structure:reshape": "view _unsafe_view reshape flatten unflatten squeeze unsqueeze view_as reshape_as "
    "_reshape_alias",
    "structure:permute": "permute transpose t movedim swapaxes swapdims moveaxis numpy_T mT",
    "structure:expand": "expand expand_as broadcast_to",
    "structure:slice_": "slice",
    "structure:narrow": "narrow",
    "structure:select": "select",
    "structure:split": "split chunk split_with_sizes tensor_split",
    "structure:unbind": "unbind",
    "structure:cat": "cat concat",
    "structure:stack": "stack",
    "structure:slice_scatter": "slice_scatter",
    "structure:select_scatter": "select_scatter",
    "structure:roll": "roll",
    "structure:flip": "flip",
    "structure:pixel_shuffle": "pixel_shuffle",
    "structure:pixel_unshuffle": "pixel_unshuffle",
    "structure:fill": "fill zero",
    "structure:constant_pad": "constant_pad_nd pad",
    "structure:add": "add",
    "structure:subtract": "sub subtract",
    "structure:subtract_from": "rsub",
    # A factor for every number.
    "pointwise:relu": "relu",
    "pointwise:mask": "clamp clamp_min clamp_max clip hardtanh relu6 threshold hardshrink",
    "pointwise:steep": "sqrt rsqrt log log1p log2 log10 reciprocal pow asin acos acosh atanh",
    "pointwise:pointwise": "gelu silu mish elu selu celu leaky_relu prelu hardswish hardsigmoid sigmoid tanh "
    "softplus log_sigmoid softshrink exp expm1 exp2 square neg abs sin cos tan atan sinh cosh asinh erf erfc "
    "nan_to_num sinc lgamma",
    "pointwise:mul": "mul multiply",
    "pointwise:div": "div divide true_divide",
    "pointwise:where": "where",
    "pointwise:masked_fill": "masked_fill",
    # Products with constant weights, and of two values.
    "products:linear": "linear",
    "products:addmm": "addmm",
    "products:mm": "mm",
    "products:bmm": "bmm",
    "products:matmul": "matmul",
    "convolution:convolution": "convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d "
    "conv_transpose3d",
    "attention:attention": "scaled_dot_product_attention",
    # Pools, sums and what normalises by them.
    "pooling:max_pool2d": "max_pool2d max_pool2d_with_indices",
    "pooling:avg_pool2d": "avg_pool2d",
    "pooling:adaptive_avg_pool2d": "adaptive_avg_pool2d _adaptive_avg_pool2d",
    "pooling:upsample_nearest": "upsample_nearest2d",
    "reductions:sum_": "sum",
    "reductions:mean": "mean",
    "reductions:softmax": "softmax _softmax _safe_softmax",
    "reductions:log_softmax": "log_softmax _log_softmax",
    "normalisation:batch_norm": "batch_norm native_batch_norm cudnn_batch_norm "
    "_native_batch_norm_legit_no_training",
    "normalisation:layer_norm": "layer_norm native_layer_norm",
    "normalisation:group_norm": "group_norm native_group_norm",
}
"""``module:function`` of a rule to the operators that it serves."""

_BY_OPERATOR = {name: rule for rule, names in RULES.items() for name in names.split()}


def find_rule(node: fx.Node) -> Callable[[Call], None] | None:
    """The rule of an operator; None if there is none."""
    rule = _BY_OPERATOR.get(operator_name(node))
    return None if rule is None else _load(rule)


@cache
def _load(rule: str) -> Callable[[Call], None]:
    module, _, function = rule.partition(":")
    found: Callable[[Call], None] = getattr(import_module(f"{__name__}.{module}"), function)
    return found
