"""Singular values: all of them from matrices (`exact`) or factors (`factored`), the largest by `krylov`."""

from __future__ import annotations

from jacli.spectrum.exact import Spectrum, singular_values, streamed_singular_values
from jacli.spectrum.factored import Core, core_of_factors, factored_singular_values
from jacli.spectrum.krylov import Triples, largest_singular_triples
from jacli.spectrum.matrix_triples import triples_of_matrices

__all__ = [
    "Core",
    "Spectrum",
    "Triples",
    "core_of_factors",
    "factored_singular_values",
    "largest_singular_triples",
    "singular_values",
    "streamed_singular_values",
    "triples_of_matrices",
]
