"""What was asked: every option of a run, parsed and checked, as one frozen `RunConfig`.

Options arrive as text from the command line, as TOML values from a file, or as JSON from an older
result.  All three go through the same table (`jacli.options.table`), and all wrong ones are reported at once.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from jacli.errors import JacliError, UsageError
from jacli.options.methods import AUTOGRAD_METHODS, CHAIN, METHODS, PROGRAM_METHODS
from jacli.options.table import OPTIONS
from jacli.options.values import Classes, Shard


@dataclass(frozen=True)
class RunConfig:
    """Every option of one run (see `INTERFACE`, ``jacli compute``); defaults are the command line's.

    Attributes are named after the options.  ``batch_size`` and ``chunk_size`` of ``None`` mean
    ``auto``; ``singular_values`` is ``"auto"``, ``"all"``, ``"none"`` or a number K; ``memory`` is in
    bytes, a safe share of what is free if None; ``precision`` is that of the linear passes alone;
    ``tolerance`` of None follows dtype and precision; ``shard`` is ``"auto"`` until the environment has
    been asked.

    Two are not options but come from the result file that ``--config RESULT.h5`` repeats: ``repeated_plan``,
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
        for name in FROM_THE_RESULT:
            del values[name]
        values["classes"] = str(self.classes)
        values["shard"] = None if self.shard is None else str(self.shard)
        return values


NOT_GIVEN = " given."
"""How the message ends that MODEL or INPUTS is missing."""

FROM_THE_RESULT = ("repeated_plan", "repeated_arch_sha256")
"""Fields that are no options: what ``--config RESULT.h5`` takes from the result."""


def usual_options() -> dict[str, Any]:
    """Every option's default as JSON: what a file says that is older than the option."""
    usual: dict[str, Any] = json.loads(json.dumps(RunConfig("-", "-").to_dict()))
    return usual


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
                    hint=f"Did you mean {' or '.join(near)}?" if near else "See `jacli compute --help`.",
                )
            )
            continue
        try:
            parsed[name] = OPTIONS[name].parse(value)
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
                    hint="For example: jacli compute model.pt inputs.npy",
                )
            )
    problems += _contradictions(parsed)
    if len(problems) == 1 and not problems[0].hint:
        problems[0].hint = "Correct it; `jacli compute --help` lists every option."
    if problems:
        raise UsageError.from_problems(problems)
    return parsed


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
