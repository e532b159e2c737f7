"""A method of the table, applied: unit vectors through its primitive, slab by slab into dense matrices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from jacli.errors import MethodError, means_out_of_memory, telling_line, translating, user_code_behind
from jacli.linear_maps import Linearization, LinearMap, Slab
from jacli.methods.unit_vectors import columns, rows
from jacli.options.methods import Method, Primitive


def primitive_map(primitive: Primitive, linearization: Linearization, *, copies: int = 1) -> LinearMap:
    """A primitive of a linearisation by its name.

    >>> import torch
    >>> from jacli.network import Linearized, TensorNetwork
    >>> from jacli.options.methods import METHODS
    >>> network = TensorNetwork.of_module(torch.nn.Linear(3, 2).eval().requires_grad_(False))
    >>> at_points = Linearized(network, torch.ones(4, 3), {})
    >>> rows_of_all = primitive(METHODS["loop"], at_points, chunk_size=1).vjp(torch.ones(1, 4, 2))
    >>> tuple(rows_of_all.shape)  # one cotangent, four samples, three inputs
    (1, 4, 3)

    Args:
        primitive: Which.
        linearization: The network at a batch.
        copies: Of the batch, on a tape.

    Raises:
        MethodError: There is no linear program.
    """
    match primitive:
        case "tape":
            return linearization.tape(copies=copies)
        case "batched":
            return linearization.batched()
        case "program":
            return linearization.program()


def primitive(method: Method, linearization: Linearization, *, chunk_size: int) -> LinearMap:
    """The map whose products a method takes; the arguments are those of `slabs`.

    Raises:
        MethodError: There is no linear program.
    """
    copies = min(chunk_size, linearization.n_out) if method.repeats_batch else 1
    return primitive_map(method.primitive, linearization, copies=copies)


def slabs(method: Method, linearization: Linearization, *, chunk_size: int) -> Iterator[Slab]:
    """The matrices of a batch in slabs of ``chunk_size`` rows or columns; every entry comes exactly once.

    >>> import torch
    >>> from jacli.network import Linearized, TensorNetwork
    >>> from jacli.options.methods import METHODS
    >>> network = TensorNetwork.of_module(torch.nn.Linear(3, 2).eval().requires_grad_(False))
    >>> at_points = Linearized(network, torch.ones(4, 3), {})
    >>> [(slab.outputs, slab.inputs) for slab in slabs(METHODS["forward"], at_points, chunk_size=2)]
    [(range(0, 2), range(0, 2)), (range(0, 2), range(2, 3))]
    """
    linear_map = primitive(method, linearization, chunk_size=chunk_size)
    chunk_size = 1 if method.single_vector else chunk_size
    return (columns if method.by_columns else rows)(linear_map, chunk_size=chunk_size)


def checked_slabs(method: Method, linearization: Linearization, *, chunk_size: int) -> Iterator[Slab]:
    """As `slabs`; what torch raises on the way becomes an error that says what to do.

    >>> import torch
    >>> from jacli.network import Linearized, TensorNetwork
    >>> from jacli.options.methods import METHODS
    >>> network = TensorNetwork.of_module(torch.nn.Linear(3, 2).eval().requires_grad_(False))
    >>> at_points = Linearized(network, torch.ones(4, 3), {})
    >>> len(list(checked_slabs(METHODS["loop"], at_points, chunk_size=2)))  # a row per pass
    2

    Raises:
        MethodError: The method has no rule for something in this model.
        MemoryError: An allocation failed, on the host or on the device.
    """

    def refusal(error: Exception) -> MethodError:
        if method.is_reference and (of_model := user_code_behind(error)) is not None:
            return MethodError(of_model.what, why=of_model.why, hint=of_model.hint)
        return MethodError(
            f"The method {method.name} does not work with this model.",
            why=f"torch says: {telling_line(error)}",
            hint="Give another --batch-size."
            if method.is_reference
            else "Leave --method out, or choose --method loop.",
        )

    with translating(refusal):
        yield from slabs(method, linearization, chunk_size=chunk_size)


def fill(
    method: Method, linearization: Linearization, *, chunk_size: int, out: Tensor | None = None
) -> Tensor:
    """The dense Jacobians of a batch, ``(b, o, i)``, put together as they come (`assemble`).

    >>> import torch
    >>> from jacli.network import Linearized, TensorNetwork
    >>> from jacli.options.methods import METHODS
    >>> network = TensorNetwork.of_module(torch.nn.Linear(3, 2).eval().requires_grad_(False))
    >>> at_points = Linearized(network, torch.ones(4, 3), {})
    >>> J = fill(METHODS["vmap"], at_points, chunk_size=2)
    >>> torch.allclose(J, network.module.weight.expand(4, 2, 3))
    True

    Raises:
        MethodError: The method has no rule for something in this model.
        MemoryError: An allocation failed, on the host or on the device.
    """
    return assemble(checked_slabs(method, linearization, chunk_size=chunk_size), linearization, out)


def assemble(slabs: Iterable[Slab], linearization: Linearization, out: Tensor | None = None) -> Tensor:
    """The dense matrices of a batch, ``(b, o, i)``, each slab written into its place.

    Nothing is stacked: the peak is the result plus one slab, and a slab that is everything is the
    result.  In memory the rows of a sample are contiguous, or its columns where slabs are columns.

    >>> import torch
    >>> from jacli.linear_maps import DenseMap
    >>> J = DenseMap(torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]))
    >>> torch.equal(assemble(columns(J, chunk_size=2), J), J.matrices)
    True

    Args:
        slabs: Of a method.
        linearization: The linearisation that they come from.
        out: Where to write, ``(<= b, o, i)``: the first samples, without those that pad a batch.

    Raises:
        MemoryError: The result cannot be allocated.
    """
    batch, n_out, n_in = linearization.batch, linearization.n_out, linearization.n_in
    dense = out
    for slab in slabs:
        rows, columns = slab.outputs, slab.inputs
        if out is None and (len(rows), len(columns)) == (n_out, n_in):
            return slab.values
        if dense is None:
            dense = _empty(slab.values, batch, n_out, n_in, by_columns=len(rows) == n_out)
        dense[:, rows.start : rows.stop, columns.start : columns.stop] = slab.values[: len(dense)]
    assert dense is not None  # a method yields every entry
    return dense


def _empty(like: Tensor, batch: int, n_out: int, n_in: int, *, by_columns: bool) -> Tensor:
    try:
        return like.new_empty(batch, n_in, n_out).mT if by_columns else like.new_empty(batch, n_out, n_in)
    except RuntimeError as error:  # torch's CPU allocator raises no MemoryError
        if means_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise
