"""Where a GPU's time goes in the linear passes: kernels, launches, gaps, and what a CUDA graph would save.

    python -m benchmarks.device.profile --out results
    python -m benchmarks.device.profile --device cpu --small   # rehearsal

For each network and precision: one adjoint pass of the whole network (not cut), its kernels, and the pass as
a CUDA graph; then the convolutions of these networks one by one, in each way that they can be written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.device.busy import activity_of
from benchmarks.device.record import Record, parser
from benchmarks.report import machine
from benchmarks.workloads import WORKLOADS
from jacli.device.clock import now
from jacli.device.precision import precisions_of
from jacli.device.torch_switches import reduced_precision
from jacli.linear_program.convolution_kernels import Geometry, rewrite_transposed
from jacli.linear_program.pass_settings import PassSettings
from jacli.linear_program.weight_cache import WeightCache
from jacli.network import LinearProgram, TensorNetwork, exact_arithmetic, trace_network


@dataclass(frozen=True)
class Subject:
    """A network, the samples of a batch, and the vectors of a pass."""

    network: str
    batch: int
    vectors: int


SUBJECTS = (
    Subject("resnet18", 16, 16),
    Subject("vit_ti16", 16, 16),
    Subject("lenet", 1024, 10),
    Subject("resnet20", 128, 10),
)


def main(arguments: list[str] | None = None) -> int:
    """Profile the passes; 0 if nothing failed."""
    options = parser("profile", "Kernels of the linear passes.", seconds=45).parse_args(arguments)
    device: torch.device = options.device
    record = Record(options.out / "profile.jsonl", options.seconds)
    record.add("machine", {"device": machine(device), "torch": torch.__version__, "small": options.small})
    with exact_arithmetic():
        for subject in SUBJECTS:
            _record_subject(record, subject, device, small=options.small)
        record.run("convolutions", lambda: _convolutions(device, small=options.small))
    return 1 if record.failures else 0


def _record_subject(record: Record, subject: Subject, device: torch.device, *, small: bool) -> None:
    batch, vectors = (1, 2) if small else (subject.batch, subject.vectors)
    model, x = WORKLOADS[subject.network].make(batch, device)
    network = TensorNetwork.of_module(model)
    program = LinearProgram(trace_network(network, x, {}).graph)
    for precision in precisions_of(device, torch.float32):
        title = f"{subject.network}, {batch} x {vectors}, {precision}"
        record.run(title, partial(_pass, program, x, vectors, precision))


def _pass(program: LinearProgram, x: Tensor, vectors: int, precision: str) -> dict[str, object]:
    device = x.device
    linear = program.linearize(x, precision=precision)
    cotangents = torch.randn(vectors, linear.batch, linear.n_out, device=device)
    expected = linear.vjp(cotangents)  # kernels are laid out

    def adjoint() -> Tensor:
        return linear.vjp(cotangents)

    def linearize() -> object:
        return program.linearize(x, precision=precision)

    adjoint(), linearize()
    found: dict[str, object] = {
        "adjoint": {"seconds": _seconds(adjoint, device), **activity_of(adjoint, device).summary(top=12)},
        "linearize": {"seconds": _seconds(linearize, device), **activity_of(linearize, device).summary(6)},
    }
    if device.type == "cuda":
        found["adjoint, cuDNN's fastest"] = _with_cudnn_benchmark(adjoint, expected, device)
        found["adjoint as a graph"] = _as_graph(adjoint, expected, device)
        found["both as a graph"] = _as_graph(
            lambda: program.linearize(x, precision=precision).vjp(cotangents), expected, device
        )
    return found


def _with_cudnn_benchmark(
    work: Callable[[], Tensor], expected: Tensor, device: torch.device
) -> dict[str, object]:
    """The same with the kernels that cuDNN finds fastest by trying all: seconds, and what trying took."""
    torch.backends.cudnn.benchmark = True
    try:
        began = now(device)
        result = work()
        trying = now(device) - began
        error = float((result - expected).norm() / expected.norm())
        return {"seconds": _seconds(work, device), "trying": trying, "error": error}
    finally:
        torch.backends.cudnn.benchmark = False


def _as_graph(work: Callable[[], Tensor], expected: Tensor, device: torch.device) -> dict[str, object]:
    """A piece of work captured and replayed: seconds, and how far its result is from the plain one."""
    try:
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(2):
                work()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = work()
        graph.replay()
        error = float((result - expected).norm() / expected.norm())
        return {"seconds": _seconds(graph.replay, device), "error": error}
    except RuntimeError as error:
        return {"failed": str(error).splitlines()[0][:300]}


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The least of several runs within half a second, each waited for."""
    best, total, runs = float("inf"), 0.0, 0
    while runs < 2 or (total < 0.5 and runs < 30):
        began = now(device)
        work()
        seconds = now(device) - began
        best, total, runs = min(best, seconds), total + seconds, runs + 1
    return best


LAYERS = (
    # c_in, c_out, kernel, stride, padding, pixels of the operand, images of a pass
    (3, 64, 7, 2, 3, 224, 256),
    (64, 64, 3, 1, 1, 56, 256),
    (64, 128, 3, 2, 1, 56, 256),
    (64, 128, 1, 2, 0, 56, 256),
    (128, 128, 3, 1, 1, 28, 256),
    (256, 256, 3, 1, 1, 14, 256),
    (512, 512, 3, 1, 1, 7, 256),
    (3, 192, 16, 16, 0, 224, 256),
    (1, 16, 5, 1, 2, 28, 10240),
    (16, 32, 5, 1, 2, 14, 10240),
    (3, 16, 3, 1, 1, 32, 1280),
    (16, 16, 3, 1, 1, 32, 1280),
    (32, 32, 3, 1, 1, 16, 1280),
    (64, 64, 3, 1, 1, 8, 1280),
)


def _convolutions(device: torch.device, *, small: bool) -> dict[str, object]:
    """Milliseconds of each layer's adjoint, transposed and as `rewrite_transposed` has it, per order."""
    found: dict[str, object] = {}
    for c_in, c_out, size, stride, padding, pixels, images in LAYERS:
        count = 2 if small else images
        geometry = Geometry((stride, stride), (padding, padding), (1, 1), 1)
        kernel = torch.randn(c_out, c_in, size, size, device=device)
        way = rewrite_transposed(kernel, geometry, (pixels, pixels))
        after = (pixels + 2 * padding - size) // stride + 1
        times: dict[str, str] = {}
        for precision in precisions_of(device, torch.float32):
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            for last in (False, True):
                settings = PassSettings(dtype, device, last, WeightCache())
                g = settings.images(torch.randn(count, c_out, after, after, device=device).to(dtype))
                ways: dict[str, Callable[[Tensor], Tensor]] = {}
                ways |= {"transposed": partial(_transpose, geometry, settings, kernel, (pixels, pixels))}
                if way is not None:
                    ways["rewritten"] = way.laid_out(settings)
                with reduced_precision(precision):
                    for name, run in ways.items():
                        run(g)
                        order = "last" if last else "first"
                        times[f"{precision} {name} {order}"] = f"{_quick(partial(run, g), device) * 1e3:.3g}"
        found[f"{c_in}-{c_out} {size}x{size}/{stride} {pixels}"] = times
    return found


def _transpose(
    geometry: Geometry, settings: PassSettings, kernel: Tensor, shape: tuple[int, int], g: Tensor
) -> Tensor:
    return geometry.transpose(g, settings.images(kernel.to(settings.dtype)), shape)


def _quick(work: Callable[[], Tensor], device: torch.device) -> float:
    best = float("inf")
    for _ in range(4):
        began = now(device)
        work()
        best = min(best, now(device) - began)
    return best


if __name__ == "__main__":
    sys.exit(main())
