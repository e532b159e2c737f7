"""Singular values: exact from matrices (`exact`), the largest from a `LinearMap` alone (`lanczos`)."""

from __future__ import annotations

from jacli.spectrum.exact import Spectrum, singular_values, streamed_singular_values
from jacli.spectrum.lanczos import largest_singular_values

__all__ = ["Spectrum", "largest_singular_values", "singular_values", "streamed_singular_values"]
