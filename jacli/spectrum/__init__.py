"""Singular values: all of them from matrices (`exact`) or factors (`factored`), the largest by `lanczos`."""

from __future__ import annotations

from jacli.spectrum.exact import Spectrum, singular_values, streamed_singular_values
from jacli.spectrum.factored import Core, core_of_factors, factored_singular_values
from jacli.spectrum.lanczos import largest_singular_values

__all__ = [
    "Core",
    "Spectrum",
    "core_of_factors",
    "factored_singular_values",
    "largest_singular_values",
    "singular_values",
    "streamed_singular_values",
]
