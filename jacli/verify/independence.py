"""Every batch of a run: does each sample give what it gives in another order, and on its own?

The probe before the run sees two samples.  This sees what comes later: samples that influence one another in
larger batches only, outputs that depend on the row, a branch on the whole batch, state that shows
after a while.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jacli.errors import ModelError, telling_line, translating
from jacli.errors.printable import count_of
from jacli.linear_map import Linearization, LinearMap, Matrices
from jacli.linear_map.agreement import finite, gaps, ratios, relative_errors
from jacli.verify.probe import mixing_error
from jacli.verify.recheck import MOST_ROWS
from jacli.verify.rows import N_SIZES, estimated_norms, every_row_errors

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest gap of a number, relative to it or to the median of that output over the batch."""

_SHARE_OF_LARGEST = 1e-2
"""This part of a sample's largest output counts as size of every other: all of them round with it."""

_NOISE = 8
"""Rounding errors by which inputs are moved, to see what rounding does to a model."""

_NOISE_DRAWS = 6

_NOISE_ALLOWED = 16
"""A gap counts as rounding up to this many times what the largest of these moves does."""

_SPREAD = 4
"""As many times for gradients, which jump where outputs do not."""


def check_batch(
    linearization: Linearization,
    module: nn.Module,
    *,
    seed: int,
    alone: int,
    fixed_batch: bool,
    rounding: torch.dtype | None = None,
) -> None:
    """Run a batch in another order, and some of its samples on their own; their outputs must stay.

    Outputs are continuous, at a kink too, so they may differ by rounding alone, whatever the Jacobian does.
    The order is a seeded cycle through all places.  What depends on a sample's place alone is therefore
    always found: the cycle leads from each kind of place to every other.  What depends on the neighbours
    escapes only if every affected sample keeps its own, which for one of them happens with probability
    ``1 / (n - 1)`` in a batch of n.  What depends on the batch as a whole, whatever its order (a branch on a
    sum), shows in a sample that is run alone: if half of the samples give another output there and k of them
    are run, it escapes with probability ``2 ** -k``.

    Args:
        linearization: The network at the batch.
        module: Named in the error.
        seed: Of the order and the samples.
        alone: How many samples are run alone.  Where the batch size is fixed, a seeded half of the batch
            is run among copies of itself in their place, if this is not 0.
        fixed_batch: Whether the model accepts no other batch size.
        rounding: The coarsest dtype that the model computes in; the points' if None.

    Raises:
        ModelError: A sample's output differs by more than rounding, or the model fails on the batch.
        MemoryError: An allocation failed.

    Cost: one forward pass of the batch and ``alone`` of one sample; eight more of the batch where a gap
    is larger than rounding usually leaves.
    """
    size = linearization.batch
    if size == 1:
        return  # it is on its own
    generator = torch.Generator().manual_seed(seed)
    with translating(lambda error: batch_failure(size, error)):
        _compare(linearization, _cycle(size, generator), module, "in another order", seed, rounding)
        if fixed_batch and alone:
            _compare(linearization, _halved(size, generator), module, "in other company", seed, rounding)
        elif not fixed_batch:
            for position in torch.randperm(size, generator=generator)[:alone]:
                _compare(linearization, position[None], module, "on its own", seed, rounding)


def check_state(before: Tensor, now: Tensor, module: nn.Module) -> None:
    """Compare outputs at the same points before and after a module ran on others.

    State that the probe did not see may show after a while: a counter, an observer of a quantised
    network that still widens its range, the mean over all batches so far.

    Args:
        before: ``(batch, *output)``.
        now: The same shape.
        module: Named in the error.

    Raises:
        ModelError: They differ by more than rounding.
    """
    if before.shape == now.shape and bool((_apart(now, before, _sizes(before, before.dtype)) <= 1).all()):
        return
    raise ModelError(
        "The model mixes samples through state that it keeps.",
        why=f"Outputs of {type(module).__name__} at the first samples are no longer what they were before it "
        "ran on others: what is computed depends on what was computed earlier.",
        todo="Switch off what it keeps between calls (a counter, an observer, running statistics), and save "
        "it again.",
    )


def check_gradients(
    linearization: Linearization,
    matrices: LinearMap,
    module: nn.Module,
    *,
    rows: Matrices | None,
    seed: int,
    tolerance: float,
    rounding: torch.dtype,
    fixed_batch: bool,
) -> None:
    """Pull a random cotangent back through each sample in another place and in other company.

    Outputs are compared by the way.  Gradients may depend on place and company where outputs do not
    (``detach()`` in every other row, a ``backward`` of its own, a gradient divided by the batch's norm), and
    the passes of the run's own batch do not show it.  The batch is cut into two seeded halves in a seeded
    order, so that each sample has another place, half of its company and another batch size; ``u'J`` by
    a plain pass there must be that of the matrices.  What depends on the place alone, in one sample, escapes
    if that keeps its place, with probability ``1 / n`` in a batch of n; what depends on the order among the
    samples (the upper half of them) escapes where chance spreads it over both halves alike.

    A half may round otherwise than the batch, and a ReLU may fall to the other side.  So a larger error
    counts as rounding if moving the sample by rounding changes its ``u'J`` by a quarter of that error or
    more; and where rounding hides ``u'J``, the rows are compared one by one (`every_row_errors`).

    Args:
        linearization: The network at the batch.
        matrices: What was computed there, of all samples or of the first ones; held against plain passes
            of the batch itself before.
        module: Named in the error.
        rows: The same matrices where their rows can be read.
        seed: Of the halves, their order and the cotangents.
        tolerance: Largest relative error of a right method.
        rounding: The coarsest dtype that the model computes in.
        fixed_batch: Whether the model accepts no other batch size: a half is then filled up with copies.

    Raises:
        ModelError: The gradients of a sample are others, or the model fails on a half.
        MemoryError: An allocation failed.

    Cost: one forward and one reverse pass over the batch (two, where its size is fixed) and one product with
    the matrices; twelve more of each where a sample differs, and then perhaps ``n_out`` more.
    """
    size, count = linearization.batch, matrices.batch
    if size == 1:
        return  # it is on its own
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(size, generator=generator).to(linearization.device)
    vectors = torch.randn(size, linearization.n_out, generator=generator)
    vectors = vectors.to(linearization.device, linearization.dtype)
    own = matrices.vjp(vectors[None, :count])[0]
    scale = _scales(matrices, generator, vectors)

    def pulled(vectors: Tensor, noise: float = 0.0, draw: int = 0) -> Tensor:
        image = torch.zeros(size, linearization.n_in, dtype=own.dtype, device=own.device)
        for half in order.tensor_split(2):
            index = half.repeat(-(-size // len(half)))[:size] if fixed_batch else half
            part = linearization.at(index, noise=noise, seed=seed + draw)
            image[half] = part.pull(vectors[index])[: len(half)]
            if not noise:
                _compare(linearization, index, module, "in other company", seed, rounding, part.outputs)
        return image

    with translating(lambda error: batch_failure((size + 1) // 2, error)):
        image = pulled(vectors)[:count]
        errors = relative_errors(own, image, scale=scale)
        if bool((errors <= tolerance).all()):
            return
        spread = torch.zeros_like(errors)
        for draw in range(_NOISE_DRAWS):
            for steps in (_NOISE, _NOISE * _NOISE):
                moved = relative_errors(
                    pulled(vectors, steps * torch.finfo(rounding).eps, draw)[:count], image, scale=scale
                )
                spread = torch.maximum(spread, moved)
        allowed = (_SPREAD * spread).clamp(min=tolerance)
        if rows is not None and rows.n_out <= MOST_ROWS and not bool((errors <= allowed).all()):
            errors = every_row_errors(pulled, rows, vectors, seed=seed)
    strays = (~(errors <= allowed)).nonzero().flatten().tolist()
    if strays:
        others = f", and so do {len(strays) - 1} more" if len(strays) > 1 else ""
        raise mixing_error(
            module,
            f"sample {strays[0]} of a batch of {size} has other gradients in another place and "
            f"other company{others}",
        )


def _scales(matrices: LinearMap, generator: torch.Generator, like: Tensor) -> Tensor:
    """``||J||_F`` of each sample, ``(batch,)``, as estimated by random products."""
    vectors = torch.randn(N_SIZES, matrices.batch, matrices.n_out, generator=generator).to(like)
    return estimated_norms(matrices.vjp(vectors))


def batch_failure(size: int, error: Exception) -> ModelError:
    """What to say where the model raises an error on a batch of so many samples."""
    return ModelError(
        f"The model fails on a batch of {count_of(size, 'sample')}.",
        why=f"The model says: {telling_line(error)}",
        todo="Give the batch size that it accepts: --batch-size N.",
    )


def _cycle(size: int, generator: torch.Generator) -> Tensor:
    """A random permutation that is one cycle, so that nothing keeps its place."""
    visited = torch.randperm(size, generator=generator)
    order = torch.empty_like(visited)
    order[visited] = visited.roll(1)
    return order


def _halved(size: int, generator: torch.Generator) -> Tensor:
    """Half of the places keep their samples, and copies of these fill the others; ``(size,)``."""
    places = torch.randperm(size, generator=generator)
    half = (size + 1) // 2
    index = torch.arange(size)
    index[places[half:]] = places[: size - half]
    return index


def _compare(
    linearization: Linearization,
    index: Tensor,
    module: nn.Module,
    how: str,
    seed: int,
    rounding: torch.dtype | None,
    again: Tensor | None = None,
) -> None:
    """Hold the outputs at samples ``index`` (``again``, if known) against those of the same in the batch."""
    index = index.to(linearization.device)
    again = linearization.at(index).outputs if again is None else again
    among = linearization.outputs
    # Halves inside are as good as float32 here: the noise that moves the inputs flips their rounding too.
    dtype = torch.float32 if rounding == torch.float32 else among.dtype
    if again.shape == among[index].shape:
        # Nearly always its own size allows enough; that of the whole batch allows more, and takes longer.
        own = _own_sizes(among[index], dtype)
        if bool((_apart(again, among[index], own) <= 1).all()):
            return
        apart = _apart(again, among[index], _sizes(among, dtype)[index])
        if bool((apart <= 1).all()):
            return
        noise = _of_rounding(linearization, seed, dtype)[index]
        strays = (~(apart <= (_NOISE_ALLOWED * noise).clamp(min=1))).nonzero().flatten().tolist()
    else:
        strays = [0]
    if strays:
        which = int(index[strays[0]])
        others = f", and {len(strays) - 1} more do" if len(strays) > 1 else ""
        raise mixing_error(
            module, f"sample {which} of a batch of {linearization.batch} gives another output {how}{others}"
        )


def _sizes(outputs: Tensor, dtype: torch.dtype) -> Tensor:
    """What a gap may be by rounding, ``(batch, *output)``: see `TOLERANCE` and `_SHARE_OF_LARGEST`."""
    usual = finite(outputs).abs().median(dim=0, keepdim=True).values
    return torch.maximum(_own_sizes(outputs, dtype), _tolerance(dtype) * usual)


def _own_sizes(outputs: Tensor, dtype: torch.dtype) -> Tensor:
    """The part of `_sizes` that a sample's own outputs allow: at most as much."""
    values = finite(outputs).abs()
    largest = values.reshape(len(values), -1).amax(1).reshape(-1, *[1] * (values.dim() - 1))
    return _tolerance(dtype) * torch.maximum(values, _SHARE_OF_LARGEST * largest)


def _tolerance(dtype: torch.dtype) -> float:
    return TOLERANCE.get(dtype, TOLERANCE[torch.float32])


def _apart(a: Tensor, b: Tensor, sizes: Tensor) -> Tensor:
    """The largest gap of each sample in units of what is allowed, ``(batch,)``."""
    return ratios(gaps(a, b), sizes).reshape(len(a), -1).amax(1)


def _of_rounding(linearization: Linearization, seed: int, dtype: torch.dtype) -> Tensor:
    """How far noise of the size of rounding moves each sample's outputs, ``(batch,)``, as `_apart` has it.

    The operation's own rounding errors are amplified as the noise is; and where they take a step of the
    function (a rounded activation) at a tie, so does the noise.  Zero for a model that gives other outputs at
    the same inputs: that is no rounding.
    """
    everyone = torch.arange(linearization.batch, device=linearization.device)
    itself, again = (linearization.at(everyone).outputs for _ in range(2))
    sizes = _sizes(itself, dtype)
    if not bool((_apart(again, itself, sizes) <= 1).all()):
        return torch.zeros(len(itself), dtype=torch.float64, device=itself.device)
    noise = _NOISE * torch.finfo(dtype).eps
    moved = [
        _apart(linearization.at(everyone, noise=noise, seed=seed + draw).outputs, itself, sizes)
        for draw in range(_NOISE_DRAWS)
    ]
    return torch.stack(moved).amax(0)
