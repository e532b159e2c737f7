"""Methods that fill in the Jacobian: the table and what a method is.

A method is a file with three functions:

``blocks(linearization, *, chunk_size)``
    yields `jacli.linear_map.Block`; every entry of the Jacobian exactly once;
``passes(*, n_in, n_out, chunk_size)``
    its cost for one block of samples, in forward or reverse passes;
``refusal(*, fixed_batch)``
    why it cannot serve a model that accepts only that batch size, or None.

A new method is a file, a line in `METHODS`, and its name in `jacli.options.config.METHOD_NAMES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

from torch import Tensor

from jacli.errors import MethodError, telling_line, translating, user_code_behind
from jacli.linear_map import Block, CutLinearization, FactoredMap, Linearization
from jacli.methods.assemble import assemble
from jacli.plans.plan import FactoredPlan

METHODS = {
    "loop": "jacli.methods.loop",
    "replicate": "jacli.methods.replicate",
    "vmap": "jacli.methods.vmap",
    "forward": "jacli.methods.forward",
    "adjoint": "jacli.methods.adjoint",
    "tangent": "jacli.methods.tangent",
    "factored": "jacli.methods.factored",
}
"""Method name to module."""


@dataclass(frozen=True)
class Method:
    """One entry of `METHODS`, imported."""

    name: str
    blocks: Callable[..., Iterator[Block]]
    passes: Callable[..., int]
    refusal: Callable[..., str | None]


def load_method(name: str) -> Method:
    """Import a method by its name in `METHODS`."""
    module = import_module(METHODS[name])
    return Method(name, module.blocks, module.passes, module.refusal)


def checked_blocks(method: Method, linearization: Linearization, *, chunk_size: int) -> Iterator[Block]:
    """The method's blocks; what torch raises on the way becomes an error that says what to do.

    Raises:
        MethodError: The method has no rule for something in this model.
        MemoryError: An allocation failed, on the host or on the device.
    """

    def refusal(error: Exception) -> MethodError:
        plain = method.name == "loop"
        if plain and (of_model := user_code_behind(error)) is not None:
            return MethodError(of_model.what, why=of_model.why, todo=of_model.todo)
        return MethodError(
            f"The method {method.name} cannot serve this model.",
            why=f"torch says: {telling_line(error)}",
            todo="Give another --batch-size." if plain else "Leave --method out, or choose --method loop.",
        )

    with translating(refusal):
        yield from method.blocks(linearization, chunk_size=chunk_size)


def fill(
    method: Method, linearization: Linearization, *, chunk_size: int, out: Tensor | None = None
) -> Tensor:
    """The dense Jacobians of a batch, ``(batch, n_out, n_in)``, put together as they come (`assemble`).

    Raises:
        MethodError: The method has no rule for something in this model.
        MemoryError: An allocation failed, on the host or on the device.
    """
    return assemble(checked_blocks(method, linearization, chunk_size=chunk_size), linearization, out)


def factors_of(linearization: CutLinearization, plan: FactoredPlan) -> FactoredMap:
    """The two factors of a cut network, by the method ``factored``.

    Raises:
        MethodError: A link has no rule for its method, or the graph is not the network.
        MemoryError: An allocation failed.
    """

    def refusal(error: Exception) -> MethodError:
        return MethodError(
            "The method factored cannot serve this model.",
            why=f"torch says: {telling_line(error)}",
            todo="Leave --method out, or choose --method loop.",
        )

    with translating(refusal):
        made: FactoredMap = import_module(METHODS["factored"]).factors(linearization, plan)
        return made
