"""What was asked: every option of a run, parsed and checked, as one frozen `RunConfig`.

Options arrive as text from the command line, as TOML values from a file, or as JSON from an older
result.  All three go through the same table, `OPTIONS`, and all wrong ones are reported at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from jacli.errors import JacliError, UsageError
from jacli.options.methods import AUTOGRAD_METHODS, CHAIN, METHOD_NAMES, METHODS, PROGRAM_METHODS
from jacli.options.values import (
    Classes,
    Shard,
    joined,
    one_of,
    parse_arguments,
    parse_assignments,
    parse_classes,
    parse_device,
    parse_dotted_name,
    parse_dtype,
    parse_files,
    parse_flag,
    parse_fraction,
    parse_seconds,
    parse_shard,
    parse_singular_values,
    parse_size,
    parse_text,
    parse_whole_or_auto,
    whole,
)

PRECISIONS = ("ieee", "tf32", "bf16")
"""Arithmetic of the linear passes: that of ``--dtype``, or a reduced one."""


@dataclass(frozen=True)
class RunConfig:
    """Every option of one run (see `INTERFACE`, ``jacli compute``); defaults are the command line's.

    Attributes are named as the options.  ``batch_size`` and ``chunk_size`` of ``None`` mean
    ``auto``; ``singular_values`` is ``"auto"``, ``"all"``, ``"none"`` or a number K; ``memory`` is in
    bytes, a safe share of what is free if None; ``precision`` is that of the linear passes alone;
    ``tolerance`` of None follows dtype and precision; ``shard`` is ``"auto"`` until the environment has
    been asked.

    Two are no options but come from the result file that ``--config RESULT.h5`` repeats: ``repeated_plan``,
    whose choice is then taken over and not measured again, and ``repeated_arch_sha256``, with which the
    architecture's source is compared where its name is given again.
    """

    model: str
    inputs: str
    out: str = "out.h5"
    arch: str | None = None
    arch_arg: Mapping[str, Any] = field(default_factory=dict)
    weights_key: str | None = None
    strip_prefix: str | None = None
    ema: bool | None = None
    ignore_extra_weights: bool = False
    arg: Mapping[str, Any] = field(default_factory=dict)
    constant: Mapping[str, str] = field(default_factory=dict)
    input_arg: str | None = None
    select: str | None = None
    allow_pickle: bool = False
    inputs_key: str | None = None
    samples: str | None = None
    classes: Classes = field(default_factory=Classes)
    of: str = "logits"
    labels: str | None = None
    method: str = "auto"
    dtype: str = "float32"
    precision: str = "ieee"
    device: str = "auto"
    batch_size: int | None = None
    chunk_size: int | None = None
    memory: int | None = None
    save: str = "full"
    save_dtype: str | None = None
    compress: str = "none"
    save_inputs: bool = True
    singular_values: str | int = "auto"
    verify: int = 1
    tolerance: float | None = None
    resume: bool = True
    overwrite: bool = False
    shard: Shard | str | None = None
    seed: int = 0
    quiet: bool = False
    json: bool = False
    log_every: float = 30.0
    debug: bool = False
    dry_run: bool = False
    repeated_plan: Mapping[str, Any] | None = None
    repeated_arch_sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON-able values; `from_options` reads them back."""
        values = asdict(self)
        for name in NO_OPTIONS:
            del values[name]
        values["classes"] = str(self.classes)
        values["shard"] = None if self.shard is None else str(self.shard)
        return values


NOT_GIVEN = " given."
"""How the message ends that MODEL or INPUTS is missing."""

NO_OPTIONS = ("repeated_plan", "repeated_arch_sha256")
"""Fields that nobody gives: what ``--config RESULT.h5`` takes from the result."""

PRINTING_ONLY = ("json", "debug", "dry_run")
"""Options about what the command prints: `jacli.compute` prints nothing, and does not take them."""

COMMAND_LINE_ONLY = ("quiet", "log_every", *PRINTING_ONLY)
"""Options about what is told of a run, on the screen or in a log."""

NOT_REPEATED = ("out", "resume", "overwrite", *COMMAND_LINE_ONLY, "allow_pickle")
"""Options that ``--config RESULT.h5`` does not take over: they say where and how loudly, not what, or
would run code because a file says so."""


CHANGES_NO_NUMBER = (*NOT_REPEATED, "verify", "tolerance", "memory")
"""Options that may differ between two processes of one run."""


def from_options(options: Mapping[str, Any]) -> RunConfig:
    """The options of a run; see `parsed_options`."""
    return RunConfig(**parsed_options(options, needed=("model", "inputs")))


def parsed_options(options: Mapping[str, Any], *, needed: Sequence[str] = ()) -> dict[str, Any]:
    """Parse and check options of any origin; ``None`` values count as not given.

    Args:
        options: Option name (underscores) to text, or to a value as TOML and JSON have them.
        needed: Options that must be given.

    Raises:
        UsageError: Naming every option that is unknown, missing or wrong.
    """
    problems: list[JacliError] = []
    parsed: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, n=3)
            problems.append(
                UsageError(
                    f"There is no option {name!r}.",
                    why="It is not among jacli compute's options.",
                    todo=f"Did you mean {' or '.join(near)}?" if near else "See `jacli compute --help`.",
                )
            )
            continue
        try:
            parsed[name] = OPTIONS[name](value)
        except ValueError as error:
            flag = name if name in ("model", "inputs") else f"--{name.replace('_', '-')}"
            problems.append(
                UsageError(f"{flag} {_shown(value)} is wrong.", why=_sentence("It must be", str(error)))
            )
    for name in needed:
        if not parsed.get(name) and not any(name in str(p) for p in problems):
            problems.append(
                UsageError(
                    f"No {name.upper()}{NOT_GIVEN}",
                    why="A run needs a model and inputs.",
                    todo="For example: jacli compute model.pt inputs.npy",
                )
            )
    problems += _contradictions(parsed)
    if len(problems) == 1 and not problems[0].todo:
        problems[0].todo = "Correct it; `jacli compute --help` lists every option."
    if problems:
        raise UsageError.from_problems(problems)
    return parsed


def _contradictions(parsed: Mapping[str, Any]) -> list[JacliError]:
    return [
        UsageError(what, why=why, todo=todo) for holds, what, why, todo in _CONTRADICTIONS if holds(parsed)
    ]


_SINGLE_VECTOR = tuple(name for name, method in METHODS.items() if method.single_vector)

_CONTRADICTIONS: tuple[tuple[Callable[[Mapping[str, Any]], bool], str, str, str], ...] = (
    (
        lambda o: o.get("classes", Classes()).kind == "label" and not o.get("labels"),
        "--classes label needs --labels FILE.",
        "The labels say which output each sample has.",
        "Give --labels FILE, one class index a sample.",
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
        "TF32 is arithmetic of NVIDIA GPUs since Ampere.",
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
    text = value if isinstance(value, str) else repr(value)
    return repr(text) if not text or " " in text else text


def _sentence(start: str, rest: str) -> str:
    return f"{start} {rest}."


OPTIONS: dict[str, Callable[[Any], Any]] = {
    "model": parse_text,
    "inputs": parse_text,
    "out": parse_text,
    "arch": parse_text,
    "arch_arg": parse_assignments,
    "weights_key": parse_text,
    "strip_prefix": parse_text,
    "ema": parse_flag,
    "ignore_extra_weights": parse_flag,
    "arg": parse_arguments,
    "constant": parse_files,
    "input_arg": parse_dotted_name,
    "select": lambda value: parse_text(str(value)),
    "allow_pickle": parse_flag,
    "inputs_key": parse_text,
    "samples": lambda value: parse_text(joined(value)),
    "classes": parse_classes,
    "of": one_of("logits", "probs", "log-probs"),
    "labels": parse_text,
    "method": one_of("auto", *METHOD_NAMES),
    "dtype": parse_dtype,
    "precision": one_of(*PRECISIONS),
    "device": parse_device,
    "batch_size": parse_whole_or_auto,
    "chunk_size": parse_whole_or_auto,
    "memory": parse_size,
    "save": one_of("full", "factors", "none"),
    "save_dtype": one_of("float32", "float16", "float64"),
    "compress": one_of("none", "gzip", "lzf", "zstd"),
    "save_inputs": parse_flag,
    "singular_values": parse_singular_values,
    "verify": whole(0),
    "tolerance": parse_fraction,
    "resume": parse_flag,
    "overwrite": parse_flag,
    "shard": parse_shard,
    "seed": whole(0),
    "quiet": parse_flag,
    "json": parse_flag,
    "log_every": parse_seconds,
    "debug": parse_flag,
    "dry_run": parse_flag,
}
"""Every option: name to parser.  A parser raises ``ValueError`` with what the value must be."""

assert set(OPTIONS) == {f.name for f in fields(RunConfig)} - set(NO_OPTIONS)
