"""From options of any origin to one frozen `RunConfig`.

Options arrive as text from the command line, as TOML values from a file, or as JSON from an older
result.  All three go through the same table (`jacli.options.table`), and all wrong ones are reported at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jacli.errors import JacliError, UsageError
from jacli.options.methods import AUTOGRAD_METHODS, CHAIN, METHODS, PROGRAM_METHODS
from jacli.options.table import OPTIONS, POSITIONAL, RunConfig, flag_of
from jacli.options.values import Classes


class MissingError(UsageError):
    """An option that must be given is not."""


def from_options(options: Mapping[str, Any]) -> RunConfig:
    """The options of a run; see `parsed_options`.

    >>> run = from_options({"model": "net.pt", "inputs": "x.npy", "batch_size": "32", "memory": "4GiB"})
    >>> run.batch_size, run.memory, run.method
    (32, 4294967296, 'auto')
    """
    return RunConfig(**parsed_options(options, needed=POSITIONAL))


def parsed_options(options: Mapping[str, Any], *, needed: Sequence[str] = ()) -> dict[str, Any]:
    """Parse and check options of any origin; ``None`` values count as not given.

    >>> parsed_options({"classes": "0,3", "precision": None})
    {'classes': Classes(kind='indices', indices=(0, 3), k=0)}
    >>> parsed_options({"metod": "loop"})
    Traceback (most recent call last):
        ...
    jacli.errors.UsageError: There is no option 'metod'.
    It is not among jacli compute's options.
    Did you mean method or model? `jacli compute --help` lists every option.

    Args:
        options: Option name (underscores) to text, or to a value as TOML and JSON have them.
        needed: Options that must be given.

    Raises:
        UsageError: Naming every option that is unknown, missing or wrong.
    """
    given = {name: value for name, value in options.items() if value is not None}
    problems: list[JacliError] = [_unknown(name) for name in given if name not in OPTIONS]
    parsed, wrong = parse_values(given, {name: option.parse for name, option in OPTIONS.items()})
    problems += wrong
    problems += [
        MissingError(
            f"No {flag_of(name)} given.",
            why="A run needs a model and inputs.",
            hint="For example: `jacli compute model.pt inputs.npy`.",
        )
        for name in needed
        if name not in given
    ]
    problems += _contradictions(parsed)
    if problems:
        raise UsageError.from_problems(problems, command="jacli compute")
    return parsed


def _unknown(name: str) -> UsageError:
    near = difflib.get_close_matches(name, OPTIONS, n=3)
    return UsageError(
        f"There is no option {name!r}.",
        why="It is not among jacli compute's options.",
        hint=f"Did you mean {' or '.join(near)}?" if near else "",
    )


def parse_values(
    values: Mapping[str, Any], parsers: Mapping[str, Callable[[Any], Any]]
) -> tuple[dict[str, Any], list[UsageError]]:
    """The values of options by their parsers, and the refusals of those that are wrong.

    Args:
        values: Option (underscores) to its value; those without a parser are left aside.
        parsers: Option to its parser, which raises ``ValueError`` with what the value must be.
    """
    parsed: dict[str, Any] = {}
    wrong: list[UsageError] = []
    for name, value in values.items():
        if name not in parsers:
            continue
        try:
            parsed[name] = parsers[name](value)
        except ValueError as error:
            what = f"{flag_of(name)} {_shown(value)} is wrong."
            wrong.append(UsageError(what, why=f"It must be {error}."))
    return parsed, wrong


def _contradictions(parsed: Mapping[str, Any]) -> list[JacliError]:
    return [
        UsageError(what, why=why, hint=hint) for holds, what, why, hint in _CONTRADICTIONS if holds(parsed)
    ]


_SINGLE_VECTOR = tuple(name for name, method in METHODS.items() if method.single_vector)

_CONTRADICTIONS: tuple[tuple[Callable[[Mapping[str, Any]], bool], str, str, str], ...] = (
    (
        lambda o: o.get("classes", Classes()).kind == "label" and not o.get("labels"),
        "--classes label needs --labels FILE.",
        "The labels say which output each sample has.",
        "Give --labels FILE, one class index per sample.",
    ),
    (
        lambda o: bool(set(o.get("arg", {})) & set(o.get("constant", {}))),
        "--arg and --constant name the same argument.",
        "An argument has one value.",
        "Leave one of them out.",
    ),
    (
        lambda o: o.get("compress", "none") != "none" and o.get("save") == "none",
        "--compress goes with --save full or factors.",
        "With --save none there is nothing large to compress.",
        "Leave one of them out.",
    ),
    (
        lambda o: bool(o.get("save_dtype")) and o.get("save") == "none",
        "--save-dtype goes with --save full or factors.",
        "With --save none no Jacobian is written.",
        "Leave one of them out.",
    ),
    (
        lambda o: o.get("save") == "factors" and o.get("method", "auto") not in ("auto", CHAIN),
        f"--save factors goes with --method {CHAIN} or auto.",
        "The other methods never have the factors.",
        "Leave --method out.",
    ),
    (
        lambda o: o.get("method") in _SINGLE_VECTOR and o.get("chunk_size") is not None,
        f"--chunk-size goes with any --method but {', '.join(_SINGLE_VECTOR)}.",
        f"{', '.join(_SINGLE_VECTOR)} has one pass size only.",
        "Leave it out.",
    ),
    (
        lambda o: o.get("precision") == "tf32" and o.get("device") == "cpu",
        "--precision tf32 goes with a GPU.",
        "Only NVIDIA GPUs have TF32, since Ampere.",
        "Give --precision bf16, or leave it out.",
    ),
    (
        lambda o: o.get("precision") == "tf32" and o.get("dtype") == "float64",
        "--precision tf32 goes with --dtype float32.",
        "TF32 is a way to multiply float32 numbers.",
        "Leave one of them out.",
    ),
    (
        lambda o: o.get("precision", "ieee") != "ieee" and o.get("method") in AUTOGRAD_METHODS,
        f"--precision tf32 and bf16 do not go with --method {', '.join(AUTOGRAD_METHODS)}.",
        "These compute wholly in --dtype, as autograd does.",
        f"Leave --method out, or give {', '.join(PROGRAM_METHODS)} or {CHAIN}.",
    ),
    (
        lambda o: o.get("tolerance") is not None and o.get("verify") == 0,
        "--tolerance goes with --verify N, N of at least 1.",
        "With --verify 0 nothing is rechecked.",
        "Leave one of them out.",
    ),
)
"""Options that exclude each other: when, and what, why and what to do."""


def _shown(value: Any) -> str:
    """A value as it was typed; in quotes where it is empty or has spaces."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    text = value if isinstance(value, str) else repr(value)
    return repr(text) if not text or " " in text else text
