"""From a module to its Jacobians, block by block: what the file-to-file run and the Python API share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from jacli.config import RunConfig
from jacli.errors import JacliError, MethodError, OutOfMemoryError, means_out_of_memory
from jacli.linear_map import Extra
from jacli.methods import METHODS, Method, fill, load_method
from jacli.network import Linearized, TensorNetwork
from jacli.plan import Plan, Shapes, candidates, make_plan
from jacli.verify import BATCH_SIZES, Probed, probe, row_error, row_tolerance


def probed_network(
    module: nn.Module,
    x: Tensor,
    extra: Extra,
    *,
    arguments: Mapping[str, object] | None = None,
    select: str | None = None,
    of: str = "logits",
    batch_hints: Sequence[int] = BATCH_SIZES,
) -> tuple[TensorNetwork, Probed]:
    """Wrap a frozen module and probe it on the first rows of the inputs."""
    network = TensorNetwork.of_module(module, arguments=arguments or {}, select=select, of=of)
    probed = probe(network, x, extra, batch_hints=batch_hints)
    return replace(network, fresh=probed.stateful, lone=probed.lone), probed


@dataclass(frozen=True)
class Chosen:
    """A method that has proved itself on the first block.

    Attributes:
        method: The method.
        plan: Its plan.
        row_error: Worst relative error of its checked rows.
        passed_over: Methods tried before, with what was wrong with each.
    """

    method: Method
    plan: Plan
    row_error: float
    passed_over: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """For the result file's ``plan``."""
        return {
            **self.plan.to_dict(),
            "row_check_error": self.row_error,
            "passed_over": dict(self.passed_over),
        }


def refusals(fixed_batch: int | None) -> dict[str, str | None]:
    """Every method with the reason why it cannot serve this model, or None."""
    return {name: load_method(name).refusal(fixed_batch=fixed_batch) for name in METHODS}


def require_served(method: str, refused: Mapping[str, str | None]) -> None:
    """Refuse by name a method that was asked for and cannot serve the model.

    Raises:
        MethodError: Always with the reason and the methods that remain.
    """
    reason = refused.get(method)
    if reason:
        others = ", ".join(name for name, why in refused.items() if why is None)
        raise MethodError(
            f"The method {method} cannot serve this model.",
            why=f"{reason[0].upper()}{reason[1:]}.",
            todo=f"Leave --method out, or choose one of: {others}.",
        )


def served_plans(shapes: Shapes, config: RunConfig) -> Iterator[tuple[Method, Plan]]:
    """The methods that may serve the model, each with its plan, best first.

    Raises:
        MethodError: The method asked for cannot serve a model of a fixed batch size.
        UsageError: Nor can the batch size asked for.
    """
    refused = refusals(shapes.fixed_batch)
    require_served(config.method, refused)
    for name, why in candidates(shapes, config, refused):
        method = load_method(name)
        yield method, make_plan(name, why, shapes, config, method.passes)


def choose(
    plans: Iterator[tuple[Method, Plan]],
    linearize: Callable[[Plan], Linearized],
    *,
    seed: int,
) -> tuple[Chosen, Linearized, Tensor]:
    """The first method that serves the first block and whose rows agree with plain reverse passes.

    Args:
        plans: Candidates, best first.
        linearize: The first block's linearisation under a plan.
        seed: Chooses the checked rows.

    Returns:
        The choice, the first block's linearisation and its dense Jacobians.

    Raises:
        MethodError: No candidate serves; the error of the last one.
    """
    passed_over: dict[str, str] = {}
    last: JacliError | None = None
    for method, plan in plans:
        linearization = linearize(plan)
        try:
            dense = fill(method, linearization, chunk_size=plan.chunk_size)
            error = row_error(linearization, dense, seed=seed)
            if error > row_tolerance(dense.dtype):
                raise MethodError(
                    f"The method {method.name} is wrong on this model.",
                    why=f"Its rows differ from plain reverse passes by {error:.1e} (relative).",
                    todo="Leave --method out, or choose --method loop.",
                )
        except MethodError as failure:
            passed_over[method.name] = f"{failure.what} {failure.why}"
            last = failure
            continue
        return Chosen(method, plan, error, passed_over), linearization, dense
    assert last is not None  # plans holds a candidate at least
    raise last


@contextmanager
def memory_errors(doing: str) -> Iterator[None]:
    """Turn running out of memory into an error that says at what size and what to do."""
    try:
        yield
    except Exception as error:
        if isinstance(error, JacliError) or not means_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"Out of memory while {doing}.",
            why=str(error).strip().splitlines()[0] if str(error).strip() else "The allocation failed.",
            todo="Give a smaller --batch-size or --chunk-size, or --method loop.",
        ) from error


def padded(rows: Tensor, size: int) -> Tensor:
    """``rows`` with its last row repeated up to ``size`` rows; as they are where they suffice."""
    if len(rows) >= size:
        return rows
    return torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])
