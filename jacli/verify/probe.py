"""The probe before a run: does this model have a per-sample Jacobian, and of what shape?

Cost: a handful of forward passes and one reverse pass over one or two samples.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from jacli.device.random_state import fork_random_state
from jacli.errors import (
    InputsError,
    JacliError,
    ModelError,
    means_out_of_memory,
    telling_line,
    translating,
    user_code_behind,
)
from jacli.errors.printable import capitalised
from jacli.linear_maps import Extra, Network
from jacli.linear_maps.agreement import finite, gaps
from jacli.linear_maps.tape import Tape
from jacli.verify.explain import Mistake, explain_failure
from jacli.verify.other_values import with_others_changed

CROSS_SAMPLE_LIMIT = 1e-6
"""Largest gradient at other samples, relative to that at the sample itself; independent samples have 0."""

BATCH_SIZES = (3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 25, 32, 48, 50, 64, 100, 128, 256)
"""Batch sizes worth trying on a model that accepts neither 1 nor 2."""

_MAX_NUMBERS_TRIED = 2**26
"""Numbers in a batch whose size is only a guess: 256 MiB in float32."""

_MAX_SECONDS_OF_TRIALS = 10.0
"""No further batch size is tried after this time: inputs of a wrong shape fail at every size."""


@dataclass(frozen=True)
class Probed:
    """What the probe learnt.

    Attributes:
        output_shape: Per sample, without the batch axis.
        fixed_batch: The only batch size the model accepts, or None.
        stateful: Whether the module keeps state between calls: every forward pass then needs a fresh copy.
        overwrites: Whether it overwrites tensors that its reverse pass needs: copies must then be saved.
        squeezes_batch_of_one: Whether the module squeezes the batch axis of a single sample.
        alone: Whether samples influence one another in larger batches: each must then be run alone, and
            ``fixed_batch`` is 1.
    """

    output_shape: tuple[int, ...]
    fixed_batch: int | None
    stateful: bool
    overwrites: bool
    squeezes_batch_of_one: bool
    alone: bool = False


class MixingError(ModelError):
    """The samples of a batch influence one another."""


def probe(
    network: Network,
    x: Tensor,
    extra: Extra,
    *,
    batch_hints: Iterable[int] = BATCH_SIZES,
    names: Collection[str] = (),
    left_out: Collection[str] = (),
    alone: bool = False,
    mistake: Mistake | None = None,
) -> Probed:
    """Find out shapes and state of a network, and refuse one without a per-sample Jacobian.

    >>> from jacli.network import TensorNetwork
    >>> network = TensorNetwork.of_module(nn.Linear(3, 2).eval().requires_grad_(False))
    >>> probed = probe(network, torch.zeros(2, 3), {})
    >>> probed.output_shape, probed.fixed_batch
    ((2,), None)

    Args:
        network: The network, its parameters frozen.
        x: The first few rows of the inputs, ``(m, *input)``, m >= 1.
        extra: Further arguments of those rows.
        batch_hints: Batch sizes to try if the model accepts neither one nor two samples.
        names: Of the further arguments of ``forward``, for messages.
        left_out: Names of its arguments that keep their default values, for messages.
        alone: Whether each sample will be run in a batch of its own (``--batch-size 1``): it then has a
            Jacobian even if samples influence one another in larger batches.
        mistake: See `explain_failure`.

    Raises:
        ModelError: The outputs are random, have no batch axis, are of another dtype than the inputs, or do
            not depend differentiably on them; or samples influence one another.
        InputsError: The model does not accept inputs of this shape.
    """
    if x[0].numel() == 0:
        raise InputsError(
            f"The inputs are empty: shape {tuple(x.shape[1:])} per sample.",
            why="There is nothing to differentiate with respect to.",
            hint="Check how they were saved.",
        )
    with fork_random_state(x.device), torch.no_grad():
        batch, fixed, squeezes_batch_of_one = _accepted_batch(
            network, x, extra, batch_hints, names, left_out, mistake
        )
        try:
            return _probe_at(network, x, extra, batch, fixed, squeezes_batch_of_one)
        except MixingError:
            if not alone or fixed is not None:
                raise
        return replace(_probe_at(network, x, extra, 1, 1, False), alone=True)


def _probe_at(
    network: Network, x: Tensor, extra: Extra, batch: int, fixed: int | None, squeezes_batch_of_one: bool
) -> Probed:
    points, rest = repeated_rows(x, extra, batch)
    stateful = _is_stateful(network, points, rest)
    trial = network.renewing() if stateful else network
    # A module that keeps state writes to its tensors, if not now then for another input.
    overwrites = stateful or _overwrites(trial, points, rest)
    trial = trial.saving_copies() if overwrites else trial
    output = trial(points, rest)
    if fixed is None and not squeezes_batch_of_one:
        squeezes_batch_of_one = _loses_batch_axis(trial, points, rest, output)
    if output.dim() == 0 or output.shape[0] != batch:
        raise _no_batch_axis(f"For a batch of {batch} the output has shape {tuple(output.shape)}.")
    _check_output(output, x)
    if batch > 1:
        # On fresh copies: state left by one call could hide from the next that samples influence one another.
        renewing = network.renewing()
        _check_independence(renewing.saving_copies() if overwrites else renewing, points, rest, output)
    _check_derivative(trial, points, rest)
    return Probed(tuple(output.shape[1:]), fixed, stateful, overwrites, squeezes_batch_of_one)


def repeated_rows(x: Tensor, extra: Extra, size: int) -> tuple[Tensor, Extra]:
    """A batch of ``size`` samples: the rows given, repeated if they are too few."""
    index = torch.arange(size, device=x.device) % x.shape[0]
    rest = {k: v[index.to(v.device)] if isinstance(v, Tensor) else v for k, v in extra.items()}
    return x[index], rest


def _attempt(network: Network, x: Tensor, extra: Extra, size: int) -> Exception | None:
    try:
        network.copied()(*repeated_rows(x, extra, size))
    except JacliError:
        raise
    except Exception as error:  # a model's own code may raise anything
        if means_out_of_memory(error):
            raise
        return error
    return None


def _accepted_batch(
    network: Network,
    x: Tensor,
    extra: Extra,
    hints: Iterable[int],
    names: Collection[str],
    left_out: Collection[str],
    mistake: Mistake | None,
) -> tuple[int, int | None, bool]:
    """A batch size to probe with, the only one accepted (or None), and whether a single sample fails."""
    two, one = (_attempt(network, x, extra, size) for size in (2, 1))
    if two is None and one is None:
        return 2, None, False
    if two is None:
        three = _attempt(network, x, extra, 3)
        return (2, None, True) if three is None else (2, 2, False)
    if one is None:
        rest = {name: rows[:1] if isinstance(rows, Tensor) else rows for name, rows in extra.items()}
        if _attempt(network, x[:1], rest, 2) is None:  # it accepts two copies of the first sample
            raise user_code_behind(two) or two
        return 1, 1, False
    explained = explain_failure(
        lambda points: network.copied()(points, repeated_rows(points, extra, len(points))[1]),
        x,
        one,
        names,
        left_out,
        mistake,
    )
    started = time.monotonic()
    for size in dict.fromkeys(hints):
        if size * x[0].numel() > _MAX_NUMBERS_TRIED:
            continue
        if size > 2 and _attempt(network, x, extra, size) is None:
            return size, size, False
        if time.monotonic() - started > _MAX_SECONDS_OF_TRIALS:
            break
    raise explained


def _is_stateful(network: Network, x: Tensor, extra: Extra) -> bool:
    """Do outputs depend on earlier calls: on their number, or on the samples that they saw?

    Layers that initialise themselves from the first batch they see (ActNorm) depend on the samples.
    """
    first = network.copied()(x, extra)
    used = network.copied()
    with_others_changed(used, x, extra, None)
    if not differ(first, used(x, extra)):
        return False
    renewing = network.renewing()
    if not differ(renewing(x, extra), renewing(x, extra)):
        return True
    noisy = sorted(
        {
            type(m).__name__
            for m in network.module.modules()
            if "drop" in type(m).__name__.lower() or m.training
        }
    )
    raise ModelError(
        "The model is random: the same input gives different outputs in different calls.",
        why="A Jacobian needs a fixed function. "
        + (
            f"Suspects: {', '.join(noisy)}."
            if noisy
            else "Dropout or noise acts in eval mode too, or the archive was traced in training mode."
        ),
        hint="Switch the randomness off in the model, or save it again after model.eval().",
    )


def _overwrites(network: Network, x: Tensor, extra: Extra) -> bool:
    """Does the reverse pass fail, or give another gradient, unless copies of saved tensors are kept for it?

    torch notices that a saved tensor was overwritten, but not if that was done through ``.data``.
    """

    def gradient(trial: Network) -> Tensor | None:
        with torch.enable_grad():
            points = x.clone().requires_grad_(True)
            output = trial(points, extra)
            if not (output.requires_grad and output.is_floating_point()):
                return None
            cotangents = torch.ones_like(output).cumsum(0).sin()  # anything but constant
            return Tape(points, output).backward(cotangents, may_be_unused=True)

    try:
        plain = gradient(network)
        saved = None if plain is None else gradient(network.saving_copies())
    except Exception as error:  # any other error will be raised again where it is reported
        if means_out_of_memory(error):
            raise
        return "modified by an inplace operation" in str(error)
    return plain is not None and saved is not None and differ(plain, saved)


def _loses_batch_axis(network: Network, points: Tensor, rest: Extra, pair: Tensor) -> bool:
    """Does the module squeeze the batch axis of a single sample?  Raises if outputs have no batch axis."""
    alone = network(*repeated_rows(points, rest, 1))
    if pair.dim() > 0 and pair.shape[0] == 2:
        if alone.shape == pair.shape[1:] and alone.shape != pair.shape:
            return True
        if alone.shape == (1, *pair.shape[1:]):
            return False
    raise _no_batch_axis(
        f"A batch of 1 gives an output of shape {tuple(alone.shape)}, a batch of 2 one of shape "
        f"{tuple(pair.shape)}: the samples are mixed into one result."
    )


def _no_batch_axis(why: str) -> ModelError:
    return ModelError(
        "The model has no per-sample output: its output has no batch axis.",
        why=f"{why} There is no Jacobian per sample.",
        hint="Give a model whose output has one row per sample (--arch file.py:callable can wrap it).",
    )


def _check_output(output: Tensor, x: Tensor) -> None:
    given, computed = (str(t.dtype).removeprefix("torch.") for t in (x, output))
    if not output.is_floating_point():
        raise ModelError(
            f"The model's output is {computed}.",
            why="A complex output has no real Jacobian."
            if output.is_complex()
            else "Whole numbers (class indices, masks) do not change when the input moves a little.",
            hint="Choose another output (--select), or wrap the model to return real scores.",
        )
    if output[0].numel() == 0:
        raise ModelError(
            f"The output is empty: shape {tuple(output.shape[1:])} per sample.",
            why="There is nothing to differentiate.",
            hint="Choose another output (--select), or check the number of classes.",
        )
    if output.dtype != x.dtype:
        offered = f"--dtype {computed}" if computed in ("float32", "float64") else "a model that does not"
        raise ModelError(
            f"The model computes in {computed} when given {given}.",
            why="It converts its input itself, so it would not compute in the dtype that was asked for.",
            hint=f"Give {offered}.",
        )


def _check_independence(network: Network, x: Tensor, extra: Extra, output: Tensor) -> None:
    """Change every sample but one: that one's output must stay, and have no gradient at the others."""
    for kept in (0, len(x) - 1):
        _, changed = with_others_changed(network, x, extra, kept)
        if differ(output[kept], changed[kept]):
            raise mixing_error(
                network.module, f"the output of sample {kept} moves when only the others change"
            )
        with torch.enable_grad():
            points = x.clone().requires_grad_(True)
            own = network(points, extra)[kept]
            gradient = _gradient((own * torch.randn_like(own)).sum(), points)
        if gradient is not None:
            # An infinite slope times a cotangent of zero is NaN: that does not mean influence.
            largest = finite(gradient).reshape(len(x), -1).abs().amax(1)
            elsewhere = torch.cat([largest[:kept], largest[kept + 1 :]]).max()
            if not elsewhere <= CROSS_SAMPLE_LIMIT * largest[kept]:
                raise mixing_error(
                    network.module, f"the output of sample {kept} has a gradient at the others"
                )


def _gradient(output: Tensor, points: Tensor) -> Tensor | None:
    """The gradient of a number; None if it does not depend on ``points``.

    Raises:
        ModelError: An operation in between has no derivative.
    """
    if not output.requires_grad:
        return None

    def refusal(error: Exception) -> ModelError:
        return ModelError(
            "The model has an operation without a derivative.",
            why=f"torch says: {telling_line(error)}",
            hint="Replace that operation, or save the model for training rather than for inference.",
        )

    with translating(refusal):
        return Tape(points, output).backward(torch.ones_like(output), may_be_unused=True)


def mixing_error(module: nn.Module, how: str) -> MixingError:
    """The error for a model whose samples influence one another; names suspicious layers."""
    layers = [
        f"{name} ({type(part).__name__})"
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and (part.training or part.running_mean is None)
    ]
    suspects = f" Suspects: {', '.join(layers[:3])}, normalising by batch statistics." if layers else ""
    return MixingError(
        "The model mixes samples: an output depends on other samples of the batch, or on its position in it.",
        why=f"{capitalised(how)}, so in such a batch there is no Jacobian per sample.{suspects}",
        hint="Compute each sample alone with --batch-size 1, if that is what the model is meant for; or "
        "save it "
        "in eval mode with running statistics, or wrap it so that samples stay apart.",
    )


def _check_derivative(network: Network, x: Tensor, extra: Extra) -> None:
    """Since every parameter is frozen, the output has ``requires_grad`` only if it depends on the input."""
    with torch.enable_grad():
        points = x.clone().requires_grad_(True)
        gradient = _gradient(network(points, extra).sum(), points)
    if gradient is None:
        raise ModelError(
            "The output does not depend differentiably on the input.",
            why="The path is broken inside the model: an integer cast, argmax, detach() or no_grad().",
            hint="Choose another output (--select), or correct the model; zeros would be a wrong answer.",
        )


def differ(a: Tensor, b: Tensor, *, eps: float = 1e-5) -> bool:
    """Do two outputs differ by more than rounding, number by number?

    Each number is compared relative to its own size or to the median size, whichever is larger: a huge or
    infinite output does not hide the others, and one that nearly cancels is not compared with its own size.

    >>> exact = torch.tensor([1.0, 100.0])
    >>> differ(exact, exact + 1e-6), differ(exact, torch.tensor([1.0, torch.nan]))
    (False, True)
    """
    if a.shape != b.shape:
        return True
    if a.numel() == 0:
        return False
    size = torch.maximum(finite(a).abs(), finite(b).abs())
    return not bool((gaps(a, b) <= eps * torch.maximum(size, size.median())).all())
