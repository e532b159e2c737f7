"""JAX as a peer: the same network and weights, jitted.  Import only where JAX is installed.

Functions and inputs are on the CPU, where they are traced; what JAX finds decides where it computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax  # type: ignore[import-not-found,unused-ignore]
import jax.numpy as jnp  # type: ignore[import-not-found,unused-ignore]
from jax import lax
from torch import Tensor

from benchmarks.jax_translation import translate
from benchmarks.peers import Function, Peer, Runner
from benchmarks.workloads import Sizes

Array = Any


def device_name() -> str:
    """What JAX computes on, with its version."""
    return f"JAX {jax.__version__} on {jax.devices()[0].device_kind}"


def _jitted(jacobian: Callable[[list[Array], Array], Array], parameters: list[Array], x: Tensor) -> Runner:
    """Compiled at once; a run ends when the result is there."""
    point = jnp.asarray(x.detach().cpu().numpy())
    compiled = jax.jit(jacobian).lower(parameters, point).compile()

    def run() -> Tensor:
        result: Any = compiled(parameters, point)
        return result.block_until_ready()  # type: ignore[no-any-return]  # `to_torch` makes it a tensor

    return run


def _over_samples(transform: Any) -> Callable[[Function, Tensor, int | None], Runner]:
    """``vmap(transform)`` over samples: as JAX's documentation writes per-sample Jacobians."""

    def prepare(function: Function, x: Tensor, chunk: int | None) -> Runner:
        apply, parameters = translate(function, x[:1])

        def of_a_sample(values: list[Array], sample: Array) -> Array:
            return apply(values, sample[None])[0]

        def jacobian(values: list[Array], points: Array) -> Array:
            return jax.vmap(transform(of_a_sample, argnums=1), (None, 0))(values, points)

        return _jitted(jacobian, parameters, x)

    return prepare


def _mapped_rows(function: Function, x: Tensor, chunk: int | None) -> Runner:
    """All samples at once, ``chunk`` outputs a pass: ``lax.map`` over the rows of the identity."""
    apply, parameters = translate(function, x)

    def jacobian(values: list[Array], points: Array) -> Array:
        y, pull = jax.vjp(lambda p: apply(values, p), points)

        def row(unit: Array) -> Array:
            return pull(jnp.broadcast_to(unit, y.shape))[0]

        return lax.map(row, jnp.eye(y.shape[1], dtype=y.dtype), batch_size=chunk)

    return _jitted(jacobian, parameters, x)


def _all_rows(sizes: Sizes, chunk: int | None) -> int:
    return sizes.batch * sizes.n_out


JAX_PEERS = (
    Peer("JAX vmap(jacrev)", _over_samples(jax.jacrev), "boi", "samples", "", (None,), _all_rows),
    Peer(
        "JAX map(vjp)",
        _mapped_rows,
        "obi",
        "outputs",
        "outputs",
        (8, 32),
        lambda sizes, chunk: (chunk or sizes.n_out) * sizes.batch,
    ),
    Peer(
        "JAX vmap(jacfwd)",
        _over_samples(jax.jacfwd),
        "boi",
        "samples",
        "",
        (None,),
        lambda sizes, chunk: sizes.batch * sizes.n_in,
        forward=True,
    ),
)
