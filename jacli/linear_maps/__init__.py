"""Linear maps, one per sample: dense, factored, chained; and what gives them, a network at a batch."""

from jacli.linear_maps.linearization import CutLinearization, Extra, Linearization, Network
from jacli.linear_maps.maps import (
    Chain,
    DenseMap,
    FactoredMap,
    LinearMap,
    Matrices,
    Samples,
    SelectedOutputs,
    Shaped,
    Slab,
    Wrapper,
)
from jacli.linear_maps.unformed import UnformedMap

__all__ = [
    "Chain",
    "CutLinearization",
    "DenseMap",
    "Extra",
    "FactoredMap",
    "LinearMap",
    "Linearization",
    "Matrices",
    "Network",
    "Samples",
    "SelectedOutputs",
    "Shaped",
    "Slab",
    "UnformedMap",
    "Wrapper",
]
