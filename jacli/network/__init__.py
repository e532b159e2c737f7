"""From a module to a linear map: the network as a function of its input, traced, cut and linearised."""

from jacli.device.torch_switches import exact_arithmetic
from jacli.linear_program import LinearProgram
from jacli.linear_program.graph import NotTraceableError
from jacli.network.cut import Cut, any_cut, useful_cuts
from jacli.network.cut_network import CutLinearized, CutNetwork
from jacli.network.linearize import OTHER_OUTPUTS, Linearized, no_program
from jacli.network.network import TensorNetwork, frozen_twin
from jacli.network.parameters import as_declared, input_parameter, parameters_of
from jacli.network.trace import TracedNetwork, trace_network
from jacli.network.watched import Watched, watch

__all__ = [
    "OTHER_OUTPUTS",
    "Cut",
    "CutLinearized",
    "CutNetwork",
    "LinearProgram",
    "Linearized",
    "NotTraceableError",
    "TensorNetwork",
    "TracedNetwork",
    "Watched",
    "any_cut",
    "as_declared",
    "exact_arithmetic",
    "frozen_twin",
    "input_parameter",
    "no_program",
    "parameters_of",
    "trace_network",
    "useful_cuts",
    "watch",
]
