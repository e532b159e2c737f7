"""From a module to a linear map: the network as a function of its input, and its linearisation."""

from jacli.network.linearize import Linearized
from jacli.network.network import TensorNetwork, frozen_twin
from jacli.network.settings import exact_arithmetic

__all__ = ["Linearized", "TensorNetwork", "exact_arithmetic", "frozen_twin"]
