"""Why does a model not accept these inputs?  The usual mistakes are tried one after another."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from jacli.errors import InputsError, JacliError, ModelError, UsageError, telling_line, user_code_behind

_DTYPE_WORDS = ("dtype", "scalar type", "input type", "found double", "double and float", "float != double")
_MAX_NUMBERS_TRIED = 2**24
"""Larger inputs are not rearranged and tried: a model may need many times their memory."""

_DEVICE_WORDS = ("same device", "at least two devices", "is on cpu", "on cpu, but")


Mistake = Callable[[str], JacliError | None]
"""What a model said, as a sentence -> the error of the mistake behind it, if it is one."""


def explain_failure(
    run: Callable[[Tensor], Tensor],
    x: Tensor,
    error: Exception,
    names: Collection[str] = (),
    left_out: Collection[str] = (),
    mistake: Mistake | None = None,
) -> JacliError:
    """An error that a user can act on, made from the one that torch raised.

    >>> error = RuntimeError("size mismatch")
    >>> print(explain_failure(lambda x: x, torch.zeros(1, 3, 32, 32), error).what)
    The inputs have shape (3, 32, 32) per sample, which the model does not accept: they are channels-first
        (NCHW) and the model wants channels-last.

    Args:
        run: The network on a batch of inputs.
        x: The rows that failed, ``(m, *input)``.
        error: What the model raised for a batch of one.
        names: Of the further arguments of ``forward``; the error names one that the model's message names.
        left_out: Names of its arguments that keep their default values, such as None.
        mistake: Who called knows more of the inputs: gives the error of a mistake in them, if it finds one.
    """
    said = f"The model says: {telling_line(error)}"
    shape = tuple(x.shape[1:])
    words = str(error).lower()
    if mistake is not None and (found := mistake(said)) is not None:
        return found
    if x.dtype == torch.float64 and is_about_dtypes(words):
        return ModelError(
            "The model does not run in float64.",
            why=f"{said} (the constants of its program are float32)",
            hint="Leave --dtype out; from Python, give x.float(), or the model in double().",
        )
    if x.device.type != "cpu" and any(word in words for word in _DEVICE_WORDS):
        return ModelError(
            f"The model does not run on {x.device}.",
            why=f"{said} (a device is fixed inside its program)",
            hint="Give --device cpu.",
        )
    if "expected tensor for argument" in words and "indices" in words:
        return ModelError(
            "The model takes whole numbers (token ids), which have no derivative.",
            why=said,
            hint="Wrap the model so that it takes the embedded vectors (--arch file.py:callable).",
        )
    if "missing" in words and "argument" in words:
        lacking = re.search(r"arguments?:? '(\w+)'", said)
        name = lacking[1] if lacking else "NAME"
        return ModelError(
            "The model's forward needs further arguments.",
            why=said,
            hint=f"Give each: --arg {name}=@FILE.npy (one row per sample), --arg {name}=VALUE, "
            f"or --constant {name}=FILE.npy (one tensor for all samples).",
        )
    if "nonetype" in words and left_out:
        name = next(iter(left_out))
        return ModelError(
            "The model seems to need an argument that was not given.",
            why=f"{said}. Arguments with their default value: {', '.join(left_out)}.",
            hint=f"Give what it needs: --arg {name}=@FILE.npy (one row per sample), --arg {name}=VALUE, "
            f"--constant {name}=FILE.npy (one tensor for all samples), or parts of it, --arg {name}.0=...",
        )
    if any(word in words for word in ("unexpected keyword", "unknown keyword", "expected at most")):
        return UsageError(
            "The model's forward has no such argument.",
            why=said,
            hint="Check the names given with --arg.",
        )
    for name, change, hint in _LAYOUTS if x.numel() <= _MAX_NUMBERS_TRIED else ():
        changed = change(x)
        if changed is not None and _accepts(run, changed):
            return InputsError(
                f"The inputs have shape {shape} per sample, which the model does not accept: {name}.",
                why=f"With {tuple(changed.shape[1:])} per sample it runs. {said}",
                hint=hint,
            )
    named = [name for name in names if _speaks_of(name.partition(".")[0], telling_line(error))]
    if named:
        return InputsError(
            f"The model does not accept the argument {named[0]} as it is given.",
            why=said,
            hint=f"Check its value, shape and dtype: --arg {named[0]}=VALUE, --arg {named[0]}=@FILE (one row "
            f"per sample), or --constant {named[0]}=FILE (one tensor for all).",
        )
    if is_about_dtypes(words):
        dtype = str(x.dtype).removeprefix("torch.")
        return ModelError(
            f"The model does not run in {dtype}.",
            why=f"{said} (a dtype is fixed inside)",
            hint=f"Wrap the model so that it takes {dtype} and converts it itself (--arch file.py:callable).",
        )
    of_model = user_code_behind(error)
    if of_model is not None and _accepts(run, torch.zeros_like(x)):
        return of_model  # it accepts inputs of this shape, but not these values
    return InputsError(
        f"The model does not accept inputs of shape {shape} per sample.",
        why=said,
        hint="Check shape, layout (batch, c, h, w) and preprocessing; a model saved for batches of N "
        "needs --batch-size N.",
    )


def _speaks_of(name: str, said: str) -> bool:
    """Does a message name an argument?  Short names may be words: they count in quotes only."""
    pattern = re.escape(name) if len(name) > 3 else f"['\"`]{re.escape(name)}['\"`]"
    return re.search(rf"(?<!\w){pattern}(?!\w)", said) is not None


def is_about_dtypes(message: str) -> bool:
    """Does the text of an error say that dtypes do not match?

    >>> is_about_dtypes("expected scalar type Double but found Float"), is_about_dtypes("shapes do not match")
    (True, False)
    """
    return any(word in message.lower() for word in _DTYPE_WORDS)


def _accepts(run: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    try:
        run(x)
    except Exception:  # any failure means no
        return False
    return True


def _channels_last(x: Tensor) -> Tensor | None:
    return x.movedim(-1, 1).contiguous() if x.dim() >= 4 and x.shape[-1] <= 16 else None


def _channels_first(x: Tensor) -> Tensor | None:
    return x.movedim(1, -1).contiguous() if x.dim() >= 4 and x.shape[1] <= 16 else None


def _no_batch(x: Tensor) -> Tensor | None:
    return x[None] if x.dim() >= 2 else None


def _no_channel(x: Tensor) -> Tensor | None:
    return x[:, None] if x.dim() >= 3 else None


def _three_channels(x: Tensor) -> Tensor | None:
    return x.repeat(1, 3, 1, 1) if x.dim() == 4 and x.shape[1] == 1 else None


def _one_channel(x: Tensor) -> Tensor | None:
    return x[:, :1] if x.dim() == 4 and x.shape[1] in (3, 4) else None


def _flat(x: Tensor) -> Tensor | None:
    return x.flatten(1) if x.dim() > 2 else None


_LAYOUTS: tuple[tuple[str, Callable[[Tensor], Tensor | None], str], ...] = (
    (
        "they are channels-last (NHWC)",
        _channels_last,
        "Save them as (batch, c, h, w): np.save('inputs.npy', x.transpose(0, 3, 1, 2)).",
    ),
    (
        "they are channels-first (NCHW) and the model wants channels-last",
        _channels_first,
        "Save them as (batch, h, w, c): np.save('inputs.npy', x.transpose(0, 2, 3, 1)).",
    ),
    ("the channel axis is missing", _no_channel, "Save them with it: np.save('inputs.npy', x[:, None])."),
    ("the batch axis is missing", _no_batch, "Save them with it: np.save('inputs.npy', x[None])."),
    (
        "they have 1 channel and the model wants 3",
        _three_channels,
        "If it was trained on grey images in three channels: np.save('inputs.npy', x.repeat(3, axis=1)).",
    ),
    (
        "they have several channels and the model wants 1",
        _one_channel,
        "Convert them to one channel as the model was trained.",
    ),
    (
        "the model wants flat inputs",
        _flat,
        "Save them flat: np.save('inputs.npy', x.reshape(len(x), -1)).",
    ),
)
"""A mistake, its remedy as a function of the batch, and in words.  The first remedy that works is reported.

If the batch axis is missing, each row of ``x`` is a slice of a single sample, with too few axes.
"""
