"""What was asked: every option of a run, parsed and checked, as one frozen `RunConfig`.

Options arrive as text from the command line, as TOML values from a file, or as JSON from an older
result.  All three go through the same table, `OPTIONS`, and all wrong ones are reported at once.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from jacli.errors import JacliError, UsageError

METHOD_NAMES = ("loop", "replicate", "vmap", "forward")


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


@dataclass(frozen=True)
class RunConfig:
    """Every option of one run (see `INTERFACE`, ``jacli compute``); defaults are the command line's.

    Attributes are named as the options.  ``batch_size`` and ``chunk_size`` of ``None`` mean
    ``auto``; ``singular_values`` is ``"auto"``, ``"all"``, ``"none"`` or a number K.
    """

    model: str
    inputs: str
    out: str = "out.h5"
    arch: str | None = None
    arch_arg: Mapping[str, Any] = field(default_factory=dict)
    weights_key: str | None = None
    strip_prefix: str | None = None
    ema: bool | None = None
    arg: Mapping[str, Any] = field(default_factory=dict)
    select: str | None = None
    allow_pickle: bool = False
    inputs_key: str | None = None
    samples: str | None = None
    classes: Classes = field(default_factory=Classes)
    of: str = "logits"
    labels: str | None = None
    method: str = "auto"
    dtype: str = "float32"
    device: str = "auto"
    batch_size: int | None = None
    chunk_size: int | None = None
    save: str = "full"
    save_dtype: str | None = None
    compress: str = "none"
    save_inputs: bool = True
    singular_values: str | int = "auto"
    overwrite: bool = False
    seed: int = 0
    quiet: bool = False
    json: bool = False
    log_every: float = 30.0
    debug: bool = False
    dry_run: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON-able values; `from_options` reads them back."""
        values = asdict(self)
        values["classes"] = str(self.classes)
        return values


COMMAND_LINE_ONLY = ("quiet", "json", "log_every", "debug", "dry_run")
"""Options about what the command prints; `jacli.compute` prints nothing."""

NOT_REPEATED = ("out", "overwrite", *COMMAND_LINE_ONLY, "allow_pickle")
"""Options that ``--config RESULT.h5`` does not take over: they say where and how loudly, not what, or
would run code because a file says so."""


def from_options(options: Mapping[str, Any]) -> RunConfig:
    """Parse and check options of any origin; ``None`` values count as not given.

    Args:
        options: Option name (underscores) to text, or to a value as TOML and JSON have them.

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
    for name in ("model", "inputs"):
        if not parsed.get(name) and not any(name in str(p) for p in problems):
            problems.append(
                UsageError(
                    f"No {name.upper()} given.",
                    why="jacli compute needs a model and inputs.",
                    todo="For example: jacli compute model.pt inputs.npy",
                )
            )
    problems += _contradictions(parsed)
    if len(problems) == 1 and not problems[0].todo:
        problems[0].todo = "Correct it; `jacli compute --help` lists every option."
    if problems:
        raise UsageError.from_problems(problems)
    return RunConfig(**parsed)


def _contradictions(parsed: Mapping[str, Any]) -> list[JacliError]:
    found: list[JacliError] = []
    classes = parsed.get("classes", Classes())
    if classes.kind == "label" and not parsed.get("labels"):
        found.append(
            UsageError(
                "--classes label needs --labels FILE.",
                why="The labels say which output each sample has.",
                todo="Give --labels FILE, one class index a sample.",
            )
        )
    if parsed.get("labels") and classes.kind != "label":
        found.append(
            UsageError(
                "--labels goes with --classes label.",
                why="Nothing else of this run reads labels.",
                todo="Add --classes label, or leave --labels out.",
            )
        )
    if parsed.get("compress", "none") != "none" and parsed.get("save") == "none":
        found.append(
            UsageError(
                "--compress goes with --save full.",
                why="With --save none there is nothing large to compress.",
                todo="Leave one of them out.",
            )
        )
    if parsed.get("save_dtype") and parsed.get("save") == "none":
        found.append(
            UsageError(
                "--save-dtype goes with --save full.",
                why="With --save none no Jacobian is written.",
                todo="Leave one of them out.",
            )
        )
    if parsed.get("method") in ("loop", "replicate") and parsed.get("chunk_size") is not None:
        found.append(
            UsageError(
                "--chunk-size goes with --method vmap, forward or auto.",
                why=f"{parsed['method']} has one pass size only.",
                todo="Leave it out.",
            )
        )
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a non-empty text")
    return value


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def _one_of(*names: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value in names:
            return str(value)
        near = difflib.get_close_matches(str(value), names, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"one of {', '.join(names)}{hint}")

    return parse


def _whole(minimum: int, maximum: int = 2**63 - 1) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        try:
            number = int(value) if not isinstance(value, (bool, float)) else None
        except (TypeError, ValueError):
            number = None
        if number is None or not minimum <= number <= maximum:
            raise ValueError(f"a whole number of at least {minimum}")
        return number

    return parse


def _whole_or_auto(value: Any) -> int | None:
    if value == "auto":
        return None
    try:
        return _whole(1)(value)
    except ValueError as error:
        raise ValueError(f"auto or {error}") from None


def _seconds(value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else 0.0
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise ValueError("a number of seconds above 0")
    return number


def _singular_values(value: Any) -> str | int:
    if value in ("auto", "all", "none"):
        return str(value)
    try:
        return _whole(1)(value)
    except ValueError:
        raise ValueError("auto, all, none or a whole number K of at least 1") from None


def _device(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        return value
    raise ValueError("auto, cpu, cuda or cuda:N")


def _joined(value: Any) -> str:
    """A list of a TOML file as it would be typed."""
    return ",".join(str(v) for v in value) if isinstance(value, (list, tuple)) else str(value)


def _classes(value: Any) -> Classes:
    expected = "all, label, top:K, or flat output indices such as 0,3,7"
    text = _joined(value).strip()
    if text in ("all", "label"):
        return Classes(text)
    if match := re.fullmatch(r"top:(\d+)", text):
        if int(match[1]) < 1:
            raise ValueError(expected)
        return Classes("top", k=int(match[1]))
    if not re.fullmatch(r"\d+(\s*,\s*\d+)*", text):
        raise ValueError(expected)
    indices = tuple(int(part) for part in text.split(","))
    if len(set(indices)) != len(indices):
        raise ValueError(f"{expected}; each once")
    return Classes("indices", indices=indices)


def parse_assignments(value: Any) -> dict[str, Any]:
    """``["sr=16000", "mask=@m.npy"]`` or a TOML table -> names to values (Python literals, else text)."""
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, (str, list, tuple)):
        raise ValueError("NAME=VALUE, or a table of them")
    pairs: dict[str, Any] = {}
    for item in [value] if isinstance(value, str) else value:
        name, equals, text = str(item).partition("=")
        if not equals or not name.strip().isidentifier():
            raise ValueError("NAME=VALUE, NAME being a Python identifier")
        try:
            pairs[name.strip()] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            pairs[name.strip()] = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    return pairs


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text) if not text or " " in text else text


def _sentence(start: str, rest: str) -> str:
    return f"{start} {rest}."


OPTIONS: dict[str, Callable[[Any], Any]] = {
    "model": _text,
    "inputs": _text,
    "out": _text,
    "arch": _text,
    "arch_arg": parse_assignments,
    "weights_key": _text,
    "strip_prefix": _text,
    "ema": _flag,
    "arg": parse_assignments,
    "select": lambda value: _text(str(value)),
    "allow_pickle": _flag,
    "inputs_key": _text,
    "samples": lambda value: _text(_joined(value)),
    "classes": _classes,
    "of": _one_of("logits", "probs", "log-probs"),
    "labels": _text,
    "method": _one_of("auto", *METHOD_NAMES),
    "dtype": _one_of("float32", "float64"),
    "device": _device,
    "batch_size": _whole_or_auto,
    "chunk_size": _whole_or_auto,
    "save": _one_of("full", "none"),
    "save_dtype": _one_of("float32", "float16", "float64"),
    "compress": _one_of("none", "gzip", "lzf", "zstd"),
    "save_inputs": _flag,
    "singular_values": _singular_values,
    "overwrite": _flag,
    "seed": _whole(0),
    "quiet": _flag,
    "json": _flag,
    "log_every": _seconds,
    "debug": _flag,
    "dry_run": _flag,
}
"""Every option: name to parser.  A parser raises ``ValueError`` with what the value must be."""

assert set(OPTIONS) == {f.name for f in fields(RunConfig)}
