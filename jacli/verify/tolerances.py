"""How far a correct result may be off: by arithmetic, precision, dtypes inside the model, and storage."""

from __future__ import annotations

_ARITHMETIC = {"float32": 1e-4, "float64": 1e-9}
"""Away from kinks, float32 and float64 Jacobians usually agree to 1e-6 and at worst to 1e-5."""

PASSES = {"ieee": 0.0, "tf32": 1e-2, "bf16": 5e-2}
"""Error added by linear passes in reduced precision, relative to the Frobenius norm.  Rounding weights and
cotangents to bfloat16 adds 0.6 to 1.9 % in most of torchvision's networks and 2.4 % in ResNet-152; TF32 has
three more bits and adds an eighth of that.  A wrong rule adds 10 % and more."""

REDUCED_INSIDE = {
    "float32": _ARITHMETIC["float32"],
    "float16": PASSES["tf32"],
    "bfloat16": PASSES["bf16"],
}
"""Error added by a model that computes inside in a lower precision than the run: float16 has as many bits as
TF32, bfloat16 as passes in bf16."""

_STORAGE = {"float16": 1e-3, "float32": 1e-6}
"""Error added by the file's dtype: relative rounding errors 2^-11 and 2^-24, with room for small numbers."""


def recheck_tolerance(dtype: str, save_dtype: str, precision: str = "ieee") -> float:
    """Largest relative error of a correct result.

    Args:
        dtype: The run's.
        save_dtype: Of the Jacobian in the file.
        precision: Of the linear passes.

    >>> recheck_tolerance("float32", "float32"), recheck_tolerance("float64", "float64")
    (0.0001, 1e-09)
    """
    narrower = save_dtype != dtype and (save_dtype, dtype) != ("float64", "float32")
    return _ARITHMETIC[dtype] + PASSES[precision] + (_STORAGE[save_dtype] if narrower else 0.0)
