"""How far a right result may be off: by its arithmetic, its passes, dtypes inside the model, and storage."""

from __future__ import annotations

_ARITHMETIC = {"float32": 1e-4, "float64": 1e-9}
"""float32 and float64 Jacobians usually agree to 1e-6 and at worst to 1e-5, away from kinks."""

PASSES = {"ieee": 0.0, "tf32": 1e-2, "bf16": 5e-2}
"""What reduced passes add, by precision.  Rounding weights and cotangents to bfloat16 leaves 0.6 to 1.9 % of
the Frobenius norm in most of torchvision's networks, 2.4 % in ResNet-152; to TF32, of three bits more, an
eighth of that.  A wrong rule leaves 10 % and more."""

REDUCED_INSIDE = {
    "float32": _ARITHMETIC["float32"],
    "float16": PASSES["tf32"],
    "bfloat16": PASSES["bf16"],
}
"""What a dtype below the run's inside a model adds; halves have as many bits as those passes."""

_STORAGE = {"float16": 1e-3, "float32": 1e-6}
"""Rounding (2^-11 and 2^-24, relative), with room for what is small."""


def recheck_tolerance(dtype: str, save_dtype: str, precision: str = "ieee") -> float:
    """Largest relative error of a right result: of the run's arithmetic, its passes and the file's dtype."""
    narrower = save_dtype != dtype and (save_dtype, dtype) != ("float64", "float32")
    return _ARITHMETIC[dtype] + PASSES[precision] + (_STORAGE[save_dtype] if narrower else 0.0)
