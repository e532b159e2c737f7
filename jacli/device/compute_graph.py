"""CUDA graphs: the kernels of a piece of work, recorded once and launched together.

The kernels of a small network take less time than Python needs to launch them, so that the GPU waits.  A CUDA
graph (NVIDIA, *CUDA Programming Guide*, "CUDA Graphs") records the launches once and replays them with other
numbers in the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from jacli.errors import JacliError, means_out_of_memory

Result = TypeVar("Result")


class ComputeGraph(Generic[Result]):
    """Recorded work, see `record`.

    Attributes:
        result: What the work returned; `replay` writes new numbers into the same tensors.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, result: Result) -> None:
        self._graph = graph
        self.result = result

    def replay(self) -> None:
        """Run the work again, on whatever numbers the tensors that it read now hold."""
        self._graph.replay()


def record(work: Callable[[], Result], device: torch.device) -> ComputeGraph[Result] | None:
    """Run work twice on a GPU, the second time recording it.

    Args:
        work: Reads and writes tensors on the GPU; must not read numbers back to the host.
        device: The GPU.

    Returns:
        The graph; None if a graph cannot hold the work, or memory runs out.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.device(device):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                work()  # kernels and workspaces of the stream that records
            torch.cuda.current_stream(device).wait_stream(side)
            # Another thread copies and writes meanwhile: its calls are none of the graph's business.
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                result = work()
    except Exception as error:
        if isinstance(error, (RuntimeError, JacliError)) or means_out_of_memory(error):
            torch.cuda.synchronize(device)
            return None
        raise
    return ComputeGraph(graph, result)
