"""Values of options, from text or a file: a parser raises ``ValueError`` with what the value must be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Classes:
    """Which outputs to differentiate.

    Attributes:
        kind: ``all``, ``indices`` (the same for every sample), ``top`` (each sample's k largest
            outputs) or ``label`` (each sample's label).
        indices: Flat output indices, for ``indices``.
        k: Number of outputs, for ``top``.
    """

    kind: str = "all"
    indices: tuple[int, ...] = ()
    k: int = 0

    @property
    def per_sample(self) -> bool:
        """Whether the selected outputs differ from sample to sample."""
        return self.kind in ("top", "label")

    def count(self, n_out: int) -> int:
        """Number of selected outputs of a network with ``n_out`` flattened outputs."""
        return {"all": n_out, "indices": len(self.indices), "top": self.k, "label": 1}[self.kind]

    def __str__(self) -> str:
        """As it is typed on the command line."""
        if self.kind == "indices":
            return ",".join(str(i) for i in self.indices)
        return f"top:{self.k}" if self.kind == "top" else self.kind


def parse_text(value: Any) -> str:
    """A text that is not empty.

    >>> parse_text("resnet18")
    'resnet18'
    >>> parse_text("")
    Traceback (most recent call last):
        ...
    ValueError: a non-empty text
    """
    if not isinstance(value, str) or not value:
        raise ValueError("a non-empty text")
    return value


def parse_flag(value: Any) -> bool:
    """A truth value.

    >>> parse_flag(True)
    True
    >>> parse_flag("yes")
    Traceback (most recent call last):
        ...
    ValueError: true or false
    """
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def one_of(*names: str) -> Callable[[Any], str]:
    """A parser of these names.

    >>> one_of("full", "factors", "none")("factor")
    Traceback (most recent call last):
        ...
    ValueError: one of full, factors, none (did you mean factors?)
    """

    def parse(value: Any) -> str:
        if value in names:
            return str(value)
        near = difflib.get_close_matches(str(value), names, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"one of {', '.join(names)}{hint}")

    return parse


def whole(minimum: int, maximum: int = 2**63 - 1) -> Callable[[Any], int]:
    """A parser of whole numbers in a range.

    >>> whole(0)("7")
    7
    >>> whole(1)(0)
    Traceback (most recent call last):
        ...
    ValueError: a whole number of at least 1
    """

    def parse(value: Any) -> int:
        try:
            number = int(value) if not isinstance(value, (bool, float)) else None
        except (TypeError, ValueError):
            number = None
        if number is None or not minimum <= number <= maximum:
            raise ValueError(f"a whole number of at least {minimum}")
        return number

    return parse


def parse_whole_or_auto(value: Any) -> int | None:
    """A whole number of at least 1; None for ``auto``.

    >>> parse_whole_or_auto("32"), parse_whole_or_auto("auto")
    (32, None)
    """
    if value == "auto":
        return None
    try:
        return whole(1)(value)
    except ValueError as error:
        raise ValueError(f"auto or {error}") from None


def parse_seconds(value: Any) -> float:
    """Seconds above 0.

    >>> parse_seconds("0.5")
    0.5
    """
    try:
        number = float(value) if not isinstance(value, bool) else 0.0
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise ValueError("a number of seconds above 0")
    return number


def parse_fraction(value: Any) -> float:
    """A relative error: above 0 and below 1.

    >>> parse_fraction("1e-4")
    0.0001
    """
    try:
        number = float(value) if not isinstance(value, bool) else 0.0
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < 1:
        raise ValueError("a relative error above 0 and below 1, such as 1e-4")
    return number


_UNITS = {"": 1, "b": 1} | {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for unit, base in (("ib", 1024), ("b", 1000), ("", 1024))
}


def parse_size(value: Any) -> int:
    """Bytes, from ``4GiB``, ``500MB`` or a number; ``4G`` counts in 1024 as Slurm does.

    >>> parse_size("4GiB"), parse_size("500MB"), parse_size("4G")
    (4294967296, 500000000, 4294967296)
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([a-z]*)", str(value).strip().lower())
    if isinstance(value, bool) or match is None or match[2] not in _UNITS:
        raise ValueError("a size in bytes, such as 4GiB, 500MB or 4000000000")
    count = int(float(match[1]) * _UNITS[match[2]])
    if count < 1:
        raise ValueError("a size of at least one byte")
    return count


def parse_singular_values(value: Any) -> str | int:
    """``auto``, ``all``, ``none`` or a number.

    >>> parse_singular_values("all"), parse_singular_values("10")
    ('all', 10)
    """
    if value in ("auto", "all", "none"):
        return str(value)
    try:
        return whole(1)(value)
    except ValueError:
        raise ValueError("auto, all, none or a whole number K of at least 1") from None


def parse_device(value: Any) -> str:
    """A device's name.

    >>> parse_device("cuda:1")
    'cuda:1'
    """
    if isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        return value
    raise ValueError("auto, cpu, cuda or cuda:N")


def joined(value: Any) -> str:
    """A list of a TOML file as it would be typed.

    >>> joined([0, 3, 7]), joined("top:5")
    ('0,3,7', 'top:5')
    """
    return ",".join(str(v) for v in value) if isinstance(value, (list, tuple)) else str(value)


def parse_name_or_index(value: Any) -> str:
    """A text, or a number as it would be typed."""
    return parse_text(str(value))


def parse_listed(value: Any) -> str:
    """A text, or a list of a TOML file as it would be typed."""
    return parse_text(joined(value))


_LISTED_CLASSES = 10
"""A range of more classes is written as a command that lists them."""


def parse_classes(value: Any) -> Classes:
    """Which outputs, see `Classes`.

    >>> parse_classes([0, 3]).indices, parse_classes("top:5").k
    ((0, 3), 5)
    >>> parse_classes("0-3")
    Traceback (most recent call last):
        ...
    ValueError: all, label, top:K, or flat output indices such as 0,3,7 (did you mean 0,1,2,3?)
    """
    expected = "all, label, top:K, or flat output indices such as 0,3,7"
    text = joined(value).strip()
    if text in ("all", "label"):
        return Classes(text)
    if match := re.fullmatch(r"top:(\d+)", text):
        if int(match[1]) < 1:
            raise ValueError(expected)
        return Classes("top", k=int(match[1]))
    if not re.fullmatch(r"\d+(\s*,\s*\d+)*", text):
        meant = _classes_meant(text)
        raise ValueError(f"{expected} (did you mean {meant}?)" if meant else expected)
    indices = tuple(int(part) for part in text.split(","))
    if len(set(indices)) != len(indices):
        raise ValueError(f"{expected}; each once")
    return Classes("indices", indices=indices)


def _classes_meant(text: str) -> str | None:
    """How what was probably meant is written; None where that is not clear."""
    text = text.strip("[](){} ").lower()
    if match := re.fullmatch(r"(\d+)\s*(-|\.\.|to|:)\s*(\d+)", text):
        first, last = int(match[1]), int(match[3]) - (match[2] == ":")
        if first >= last:
            return None
        several = last - first >= _LISTED_CLASSES
        return f"$(seq -s, {first} {last})" if several else ",".join(map(str, range(first, last + 1)))
    if match := re.fullmatch(r"top\D?(\d+)", text):
        return f"top:{match[1]}" if int(match[1]) else None
    if re.fullmatch(r"\d+([\s,;]+\d+)*", text):
        return ",".join(re.findall(r"\d+", text))
    near = difflib.get_close_matches(text, ("all", "label"), n=1)
    return near[0] if near else None


def parse_dtype(value: Any) -> str:
    """Arithmetic of a run.

    >>> parse_dtype("float64")
    'float64'
    >>> parse_dtype("double")
    Traceback (most recent call last):
        ...
    ValueError: one of float32, float64 (did you mean float64?)
    """
    names = ("float32", "float64")
    other = {
        "double": "float64",
        "fp64": "float64",
        "f64": "float64",
        "single": "float32",
        "float": "float32",
    }
    other |= {"fp32": "float32", "f32": "float32"}
    half = ("half", "float16", "fp16", "f16", "bfloat16", "bf16")
    text = str(value).lower().removeprefix("torch.")
    if value not in names and text in half:
        raise ValueError(
            "float32 or float64; half precision is available for the vector passes, --precision bf16, "
            "and for the file, --save-dtype float16"
        )
    if value not in names and (text in other or text in names):
        raise ValueError(f"one of {', '.join(names)} (did you mean {other.get(text, text)}?)")
    return one_of(*names)(value)


@dataclass(frozen=True)
class Shard:
    """One of ``count`` contiguous parts of the samples.

    Attributes:
        index: From 1 to ``count``.
        count: Parts in all.
    """

    index: int
    count: int

    def __str__(self) -> str:
        """As it is typed on the command line."""
        return f"{self.index}/{self.count}"


def parse_shard(value: Any) -> Shard | str:
    """``I/N``, or ``auto``, which the environment decides.

    >>> str(parse_shard("3/16"))
    '3/16'
    """
    if value == "auto":
        return "auto"
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", str(value).strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError("auto, or I/N with I from 1 to N")
    return Shard(int(match[1]), int(match[2]))
