"""A loaded module in the run's dtype and on its device, held against what it gave as it was loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from jacli.device.random_state import fork_random_state
from jacli.engine.probed import probed_network
from jacli.errors import InputsError, JacliError, ModelError, UsageError, means_out_of_memory, telling_line
from jacli.linear_maps.agreement import relative_errors
from jacli.models import LoadedModel
from jacli.models.dtypes import as_dtype, convert, holds, real_dtype, real_dtypes, widest
from jacli.network import TensorNetwork, as_declared, frozen_twin
from jacli.verify import Probed
from jacli.verify.explain import is_about_dtypes

_ROUNDING = {torch.float64: 1e-7, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""Largest relative difference of outputs, by the narrower of the two dtypes, that is not looked into."""

_NOISE_ALLOWED = 30
"""A larger one counts as rounding up to this many times what moving the inputs by one rounding error does."""


@dataclass(frozen=True)
class Placed:
    """A network that is ready for the run.

    Attributes:
        network: On the run's device, its inputs and outputs in the run's dtype.
        probed: What the probe learnt of it.
        converted: The real dtypes whose tensors were converted to the run's dtype, see `move`.
        notes: What the user must be told.
    """

    network: TensorNetwork
    probed: Probed
    converted: frozenset[torch.dtype]
    notes: tuple[str, ...]


def place(
    loaded: LoadedModel,
    x: Tensor,
    extra: Mapping[str, Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device,
    arguments: Mapping[str, object],
    input_arg: str | None = None,
    select: str | None,
    of: str,
    batch_hints: Sequence[int],
    alone: bool = False,
) -> Placed:
    """Convert and move a loaded module, probe it, and compare its outputs with those it gave before.

    A module of one dtype is converted to the run's.  One of several dtypes (a layer in half precision inside
    a float32 network) runs as it is if it can, so that it stays the function that it was.

    Args:
        loaded: The module; a module that needs no change is taken as it is, any other is copied.
        x: The first rows of the inputs, ``(m, *input)``, on the CPU.
        extra: Further arguments of those rows.
        dtype: Of the run.
        device: Of the run.
        arguments: Further arguments of ``forward``, the same for every sample; tensors on the CPU.
        input_arg: The argument of ``forward`` that is given the inputs, see `input_parameter`.
        select: See `TensorNetwork`.
        of: See `TensorNetwork`.
        batch_hints: See `jacli.verify.probe`.
        alone: See `jacli.verify.probe`.

    Raises:
        ModelError: No per-sample Jacobian, see `jacli.verify.probe`; or the outputs differ from those of
            the module as it was loaded.
        InputsError: The model does not accept these inputs.

    Cost: the probe; and, where anything was changed, one forward pass of the loaded module over two samples
    on the CPU and one of the placed module (two more of the first where they differ by more than rounding
    usually does).
    """
    restore_built_dtypes(loaded)
    points, rest = x.to(device, dtype), {name: rows.to(device) for name, rows in extra.items()}
    failures: list[JacliError] = []
    for converted in _ways(real_dtypes(loaded.module), dtype):
        module = loaded.module
        if converted or device.type != "cpu":
            module = frozen_twin(module)
        move(module, dtype, device, converted)
        try:
            network, probed = probed_network(
                module,
                points,
                rest,
                arguments=arguments_at(as_declared(module, arguments, dtype), dtype, device),
                input_arg=input_arg,
                select=select,
                of=of,
                batch_hints=batch_hints,
                alone=alone,
            )
        except (ModelError, InputsError, UsageError) as error:
            failures.append(error)
            continue
        notes = _kept_notes(module, dtype)
        if module is not loaded.module:
            notes += _compare(replace(network, module=loaded.module), network, probed, points, rest)
        return Placed(network, probed, converted, notes)
    raise next((error for error in failures if not is_about_dtypes(error.why or "")), failures[0])


def arguments_at(
    arguments: Mapping[str, object], dtype: torch.dtype, device: torch.device | str
) -> dict[str, object]:
    """Arguments of ``forward``, tensors among them on a device and, if floating, in a dtype."""
    return {
        name: as_dtype(value.to(device), dtype) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def restore_built_dtypes(loaded: LoadedModel) -> None:
    """Widen what the file holds in fewer bits than its architecture computes with; in place, and exact."""
    for name, tensor in (*loaded.module.named_parameters(), *loaded.module.named_buffers()):
        built, own = loaded.built_dtypes.get(name), real_dtype(tensor)
        if built is None or own is None or not (built.is_floating_point or built.is_complex):
            continue
        if holds(built.to_real(), own):
            tensor.data = as_dtype(tensor.data, built.to_real())


def move(
    module: nn.Module, dtype: torch.dtype, device: torch.device, converted: Collection[torch.dtype]
) -> None:
    """Move a module to a device, and its tensors of some real dtypes to ``dtype``; in place."""
    module.to(device)
    convert(module, dtype, only=converted)


def _ways(kinds: frozenset[torch.dtype], dtype: torch.dtype) -> list[frozenset[torch.dtype]]:
    """The dtypes that may be converted, the best way first."""
    if kinds <= {dtype}:
        return [frozenset()]
    as_it_is = frozenset() if dtype in kinds else frozenset({widest(kinds)})
    whole = kinds - {dtype}
    if len(kinds) > 1:
        return [as_it_is, whole]
    # A module that is narrower throughout may convert its input and its output itself.
    return [whole] if holds(widest(kinds), dtype) else [whole, frozenset()]


def _kept_notes(module: nn.Module, dtype: torch.dtype) -> tuple[str, ...]:
    others = sorted(str(kind).removeprefix("torch.") for kind in real_dtypes(module) - {dtype})
    return (f"parts of the model are in {', '.join(others)}, and stay so",) if others else ()


def _compare(
    before: TensorNetwork, after: TensorNetwork, probed: Probed, x: Tensor, extra: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Hold the outputs of the placed network against the loaded one's, in a dtype that the latter takes.

    Raises:
        ModelError: They differ by more than rounding.
    """
    size = probed.fixed_batch or 2
    index = torch.arange(size, device=x.device) % len(x)
    points, rest = x[index], {name: rows[index] for name, rows in extra.items()}
    kinds = sorted(real_dtypes(before.module) or {x.dtype}, key=lambda kind: -torch.finfo(kind).bits)
    failure: Exception | None = None
    with fork_random_state(x.device), torch.no_grad():
        for kind in kinds:
            try:
                before = replace(before, arguments=arguments_at(after.arguments, kind, "cpu"))
                own = before(*_at(points, rest, kind))
            except Exception as error:  # a model's own code may raise anything
                if means_out_of_memory(error):
                    raise
                failure = failure or error
                continue
            placed = after(points, rest).cpu()
            gap = _gap(own, placed)
            narrowest = min({x.dtype, *kinds}, key=lambda dtype: -torch.finfo(dtype).eps)
            if not gap <= _ROUNDING.get(narrowest, 0.2):
                noise = _gap(own, before(*_at(_nudged(points, narrowest), rest, kind)))
                if not gap <= _NOISE_ALLOWED * noise:
                    raise _another_function(before.module, gap, own.dtype, x)
            return ()
    assert failure is not None  # there is a dtype to try
    said = telling_line(failure)
    return (f"the model as loaded was not compared: without conversion it does not run on the CPU ({said})",)


def _at(x: Tensor, extra: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    return x.cpu().to(dtype), {name: as_dtype(rows.cpu(), dtype) for name, rows in extra.items()}


def _nudged(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The points moved by about one rounding error of ``dtype``."""
    spread = x.abs() + x.std(correction=0)
    return x + 2 * torch.finfo(dtype).eps * spread * torch.randn_like(x)


def _gap(own: Tensor, placed: Tensor) -> float:
    """The largest difference of a sample's outputs, relative to their norm.

    What is not finite in the wider dtype must not be finite in the narrower one either, which may overflow.
    """
    if own.shape != placed.shape:
        return torch.inf
    bits = torch.finfo(own.dtype).bits - torch.finfo(placed.dtype).bits
    if bits:
        overflowed = ~(placed if bits > 0 else own).isfinite()
        own, placed = own.masked_fill(overflowed, 0), placed.masked_fill(overflowed, 0)
    return float(relative_errors(placed, own).max())


def _another_function(module: nn.Module, gap: float, own: torch.dtype, x: Tensor) -> ModelError:
    loaded, run = (str(dtype).removeprefix("torch.") for dtype in (own, x.dtype))
    where = run if x.device.type == "cpu" else f"{run} on {x.device}"
    return ModelError(
        f"The model {type(module).__name__} computes another function in {where} than in the form in "
        "which it was loaded.",
        why=f"Its outputs at the first samples differ by {gap:.1e} (relative) from those in {loaded}.",
        hint=f"Give --dtype {loaded} and --device cpu, or a model that computes in {run} itself."
        if loaded in ("float32", "float64")
        else f"Convert the model to {run} and see that its outputs stay what they are.",
    )
