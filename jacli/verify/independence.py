"""Are the samples of a batch independent of one another and of their order?  Checked during the run.

The probe before the run sees two samples.  These checks see what it cannot: samples that influence one
another only in larger batches, outputs that depend on the row, a branch on the whole batch, state that takes
effect after a while.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jacli.errors import ModelError, telling_line, translating
from jacli.errors.printable import count_of
from jacli.linear_maps import Linearization, LinearMap, Matrices
from jacli.linear_maps.agreement import finite, gaps, ratios, relative_errors
from jacli.verify.probe import mixing_error
from jacli.verify.recheck import MOST_ROWS
from jacli.verify.rows import N_SIZES, estimated_norms, every_row_errors

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest difference of an output, relative to it or to the median of that output over the batch."""

_LEAST_SIZE = 1e-2
"""Every output of a sample counts as at least this share of its largest one, with which it rounds."""

_NOISE_EPSILONS = 8
"""To see what rounding does to a model, its inputs are moved by this many times the machine epsilon."""

_NOISE_DRAWS = 6

_MAX_OUTPUT_RATIO = 16
"""A difference of outputs counts as rounding up to this many times the largest one that noise causes."""

_MAX_GRADIENT_RATIO = 4
"""The same for gradients, which jump where outputs do not."""


def check_batch(
    linearization: Linearization,
    module: nn.Module,
    *,
    seed: int,
    alone: int,
    fixed_batch: bool,
    rounding: torch.dtype | None = None,
) -> None:
    """Run a batch in another order, and some of its samples on their own: their outputs must stay the same.

    Outputs are continuous, even at a kink, so they may differ by rounding only, whatever the Jacobian does.
    The order is a seeded cyclic permutation.  A fault that depends on a sample's position alone is therefore
    always found: the cycle leads from each kind of position to every other.  A fault that depends on the
    neighbours escapes only if every affected sample keeps its own; for one sample in a batch of n this has
    probability ``1 / (n - 1)``.  A fault that depends on the batch as a whole, whatever its order (a branch
    on a sum), shows in a sample that is run alone: if half of the samples give another output there and k of
    them are run, it escapes with probability ``2 ** -k``.

    Args:
        linearization: The network at the batch.
        module: Named in the error.
        seed: Of the order and the samples.
        alone: How many samples are run alone.  If the batch size is fixed and this is not 0, a seeded half of
            the batch is run instead, filled up with copies of itself.
        fixed_batch: Whether the model accepts no other batch size.
        rounding: The coarsest dtype that the model computes in; the points' if None.

    Raises:
        ModelError: A sample's output differs by more than rounding, or the model fails on the batch.
        MemoryError: An allocation failed.

    Cost: one forward pass of the batch and ``alone`` of one sample; eight more of the batch if a difference
    is larger than rounding usually is.
    """
    size = linearization.batch
    if size == 1:
        return  # it is alone anyway
    generator = torch.Generator().manual_seed(seed)
    with translating(lambda error: batch_failure(size, error)):
        _compare(linearization, _cycle(size, generator), module, "in another order", seed, rounding)
        if fixed_batch and alone:
            _compare(linearization, _halved(size, generator), module, "in other company", seed, rounding)
        elif not fixed_batch:
            for position in torch.randperm(size, generator=generator)[:alone]:
                _compare(linearization, position[None], module, "on its own", seed, rounding)


def check_state(before: Tensor, now: Tensor, module: nn.Module) -> None:
    """Compare the outputs at the same points before and after a module has run on others.

    State that the probe did not see may take effect later: a counter, an observer of a quantised network that
    still widens its range, the mean over all batches so far.

    >>> check_state(torch.zeros(2, 3), torch.zeros(2, 3), nn.Linear(3, 3))
    >>> check_state(torch.zeros(2, 3), torch.ones(2, 3), nn.Linear(3, 3))
    Traceback (most recent call last):
        ...
    jacli.errors.ModelError: The model mixes samples through state that it keeps.
    Outputs of Linear at the first samples changed after it ran on others: its results depend on earlier
        calls.
    Switch off what it keeps between calls (a counter, an observer, running statistics), and save it again.

    Args:
        before: ``(batch, *output)``.
        now: The same shape.
        module: Named in the error.

    Raises:
        ModelError: They differ by more than rounding.
    """
    if before.shape == now.shape and bool((_excess(now, before, _allowed(before, before.dtype)) <= 1).all()):
        return
    raise ModelError(
        "The model mixes samples through state that it keeps.",
        why=f"Outputs of {type(module).__name__} at the first samples changed after it ran on others: its "
        "results depend on earlier calls.",
        hint="Switch off what it keeps between calls (a counter, an observer, running statistics), and save "
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
    """Compute ``u'J`` of each sample, u random, in another position and among other samples.

    Gradients may depend on a sample's position or on the rest of the batch although outputs do not
    (``detach()`` in every other row, a custom ``backward``, a gradient divided by the batch's norm), and
    passes over the run's own batch do not show it.  So the batch is split into two seeded halves in a seeded
    order: each sample has another position, half of the other samples and another batch size.  ``u'J`` by a
    plain pass there must equal that of the matrices; outputs are compared, too.  A fault that depends on the
    position of a single sample escapes if that sample keeps its position, which has probability ``1 / n`` in
    a batch of n.  A fault that depends on the order (the upper half of the samples) escapes if chance spreads
    the affected samples evenly over both halves.

    A half may round differently from the batch, so that a ReLU falls to the other side.  A larger error
    therefore counts as rounding if moving the sample's input by rounding errors changes its ``u'J`` by at
    least a quarter of that error; and if rounding hides ``u'J``, the rows are compared one by one
    (`every_row_errors`).

    Args:
        linearization: The network at the batch.
        matrices: What was computed there, of all samples or of the first ones; already compared with plain
            passes over the batch itself.
        module: Named in the error.
        rows: The same matrices, if their rows can be read.
        seed: Of the halves, their order and the cotangents.
        tolerance: Largest relative error of a right method.
        rounding: The coarsest dtype that the model computes in.
        fixed_batch: Whether the model accepts no other batch size: a half is then filled up with copies.

    Raises:
        ModelError: A sample's gradients differ, or the model fails on a half.
        MemoryError: An allocation failed.

    Cost: one forward and one reverse pass over the batch (two if its size is fixed) and one product with the
    matrices; if a sample differs, twelve more of each, and then perhaps ``n_out`` more.
    """
    size, count = linearization.batch, matrices.batch
    if size == 1:
        return  # it is alone anyway
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(size, generator=generator).to(linearization.device)
    vectors = torch.randn(size, linearization.n_out, generator=generator)
    vectors = vectors.to(linearization.device, linearization.dtype)
    own = matrices.vjp(vectors[None, :count])[0]
    scale = _frobenius_norms(matrices, generator, vectors)

    def pulled(vectors: Tensor, noise: float = 0.0, draw: int = 0) -> Tensor:
        image = torch.zeros(size, linearization.n_in, dtype=own.dtype, device=own.device)
        for half in order.tensor_split(2):
            index = half.repeat(-(-size // len(half)))[:size] if fixed_batch else half
            with linearization.at(index, noise=noise, seed=seed + draw) as part:
                image[half] = part.tape().vjp(vectors[None, index])[0, : len(half)]
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
            for steps in (_NOISE_EPSILONS, _NOISE_EPSILONS * _NOISE_EPSILONS):
                moved = relative_errors(
                    pulled(vectors, steps * torch.finfo(rounding).eps, draw)[:count], image, scale=scale
                )
                spread = torch.maximum(spread, moved)
        allowed = (_MAX_GRADIENT_RATIO * spread).clamp(min=tolerance)
        if rows is not None and rows.n_out <= MOST_ROWS and not bool((errors <= allowed).all()):
            errors = every_row_errors(pulled, rows, vectors, seed=seed)
    different = (~(errors <= allowed)).nonzero().flatten().tolist()
    if different:
        others = f", and so do {len(different) - 1} more" if len(different) > 1 else ""
        raise mixing_error(
            module,
            f"sample {different[0]} of a batch of {size} has other gradients in another place and "
            f"other company{others}",
        )


def _frobenius_norms(matrices: LinearMap, generator: torch.Generator, like: Tensor) -> Tensor:
    """``||J||_F`` of each sample, ``(batch,)``, as estimated by random products."""
    vectors = torch.randn(N_SIZES, matrices.batch, matrices.n_out, generator=generator).to(like)
    return estimated_norms(matrices.vjp(vectors))


def batch_failure(size: int, error: Exception) -> ModelError:
    """The error to report if the model itself raises one on a batch of ``size`` samples.

    >>> print(batch_failure(32, RuntimeError("batch must be even")))
    The model fails on a batch of 32 samples.
    The model says: batch must be even.
    Give the batch size that it accepts: --batch-size N.
    """
    return ModelError(
        f"The model fails on a batch of {count_of(size, 'sample')}.",
        why=f"The model says: {telling_line(error)}",
        hint="Give the batch size that it accepts: --batch-size N.",
    )


def _cycle(size: int, generator: torch.Generator) -> Tensor:
    """A random cyclic permutation: no sample keeps its position."""
    visited = torch.randperm(size, generator=generator)
    order = torch.empty_like(visited)
    order[visited] = visited.roll(1)
    return order


def _halved(size: int, generator: torch.Generator) -> Tensor:
    """Half of the positions keep their samples; copies of these fill the others.  ``(size,)``."""
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
    """Compare the outputs of samples ``index``, run anew (``again``, if known), with those in the batch."""
    index = index.to(linearization.device)
    again = linearization.at(index).outputs if again is None else again
    among = linearization.outputs
    # Half precision inside the model needs no wider tolerance: the noise flips its rounding as well.
    dtype = torch.float32 if rounding == torch.float32 else among.dtype
    if again.shape == among[index].shape:
        # Nearly always the samples' own sizes suffice; those of the whole batch allow more but take longer.
        own = _allowed_by_own(among[index], dtype)
        if bool((_excess(again, among[index], own) <= 1).all()):
            return
        excess = _excess(again, among[index], _allowed(among, dtype)[index])
        if bool((excess <= 1).all()):
            return
        noise = _noise_excess(linearization, seed, dtype)[index]
        different = (~(excess <= (_MAX_OUTPUT_RATIO * noise).clamp(min=1))).nonzero().flatten().tolist()
    else:
        different = [0]
    if different:
        which = int(index[different[0]])
        others = f", and {len(different) - 1} more do" if len(different) > 1 else ""
        raise mixing_error(
            module, f"sample {which} of a batch of {linearization.batch} gives another output {how}{others}"
        )


def _allowed(outputs: Tensor, dtype: torch.dtype) -> Tensor:
    """How far rounding may move each output, ``(batch, *output)``: see `TOLERANCE` and `_LEAST_SIZE`."""
    usual = finite(outputs).abs().median(dim=0, keepdim=True).values
    return torch.maximum(_allowed_by_own(outputs, dtype), _tolerance(dtype) * usual)


def _allowed_by_own(outputs: Tensor, dtype: torch.dtype) -> Tensor:
    """As `_allowed`, by the outputs of a sample alone: never more."""
    values = finite(outputs).abs()
    largest = values.reshape(len(values), -1).amax(1).reshape(-1, *[1] * (values.dim() - 1))
    return _tolerance(dtype) * torch.maximum(values, _LEAST_SIZE * largest)


def _tolerance(dtype: torch.dtype) -> float:
    return TOLERANCE.get(dtype, TOLERANCE[torch.float32])


def _excess(a: Tensor, b: Tensor, sizes: Tensor) -> Tensor:
    """The largest difference of each sample, in units of what is allowed, ``(batch,)``."""
    return ratios(gaps(a, b), sizes).reshape(len(a), -1).amax(1)


def _noise_excess(linearization: Linearization, seed: int, dtype: torch.dtype) -> Tensor:
    """How far noise of the size of rounding moves each sample's outputs, ``(batch,)``, in units of `_excess`.

    The network amplifies the noise as it amplifies its own rounding errors; and if these cross a step of the
    function (a rounded activation at a tie), so does the noise.  Zero for a model that gives other outputs at
    the same inputs: that is not rounding.
    """
    everyone = torch.arange(linearization.batch, device=linearization.device)
    itself, again = (linearization.at(everyone).outputs for _ in range(2))
    sizes = _allowed(itself, dtype)
    if not bool((_excess(again, itself, sizes) <= 1).all()):
        return torch.zeros(len(itself), dtype=torch.float64, device=itself.device)
    noise = _NOISE_EPSILONS * torch.finfo(dtype).eps
    moved = [
        _excess(linearization.at(everyone, noise=noise, seed=seed + draw).outputs, itself, sizes)
        for draw in range(_NOISE_DRAWS)
    ]
    return torch.stack(moved).amax(0)
