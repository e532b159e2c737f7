"""The one table of options: of each its type, default and parser, what it changes, who takes it.  No torch.

The table is `RunConfig`: a field is a row.  Every list of options that another room needs is derived from it
by a question (`names_of`).  A new option is a row here and a flag of the command.  Help, metavar and panel
stand with the flag: they say how a command is typed and shown, and several commands share some of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum, auto
from typing import Annotated, Any, Literal, get_type_hints

from jacli.options.assignments import parse_arguments, parse_assignments, parse_dotted_name, parse_files
from jacli.options.methods import METHOD_NAMES, PRECISIONS
from jacli.options.values import (
    Classes,
    Shard,
    one_of,
    parse_classes,
    parse_device,
    parse_dtype,
    parse_flag,
    parse_fraction,
    parse_listed,
    parse_name_or_index,
    parse_seconds,
    parse_shard,
    parse_singular_values,
    parse_size,
    parse_text,
    parse_whole_or_auto,
    whole,
)


class Changes(Enum):
    """What another value of an option changes in the result file."""

    NOTHING = auto()
    """No number of it: where it goes, what is printed, how it is checked."""
    ROUNDING = auto()
    """Numbers, by rounding only."""
    ROUNDING_NOTED = auto()
    """Numbers, by rounding only; the file notes which samples were computed in which way."""
    PART = auto()
    """Which samples of the run it holds."""
    NUMBERS = auto()
    """What it holds."""


class File(Enum):
    """How an option names a file."""

    WHOLE = auto()
    """Its value is what is read, and is compared by its content: it may have moved."""
    INSIDE = auto()
    """Those of its values that begin with ``@`` are read."""
    EACH = auto()
    """Each of its values is read."""
    WRITTEN = auto()
    """Its value is written."""


@dataclass(frozen=True)
class Option:
    """One option of ``jacli compute``; its name, type and default are those of its field in `RunConfig`.

    Attributes:
        parse: From text, or a value as TOML and JSON have it; raises ``ValueError`` with what it must be.
        changes: What another value changes.
        plan: Whether the plan that another value was chosen for no longer fits.
        file: How it names a file, if it does.
        positional: Whether it is typed without a flag; such an option must be given.
        repeated: Whether ``--config RESULT.h5`` takes it over; not what says where and how loudly, or would
            run code because a file says so.
        in_python: Whether `jacli.compute` takes it; not what is about the command's own printing.
        task: Who takes it of ``jacli submit``: each ``task`` of the array, ``submit`` itself, or nobody
            (``never``), since a task has its shard, always resumes and always computes.
    """

    parse: Callable[[Any], Any]
    changes: Changes
    plan: bool = False
    file: File | None = None
    positional: bool = False
    repeated: bool = True
    in_python: bool = True
    task: Literal["task", "submit", "never"] = "task"


_NOTHING, _NUMBERS = Changes.NOTHING, Changes.NUMBERS


@dataclass(frozen=True)
class RunConfig:
    """Every option of one run: a field is a row of the table.

    ``batch_size`` and ``chunk_size`` of ``None`` mean ``auto``; ``singular_values`` is ``"auto"``, ``"all"``,
    ``"none"`` or a number K; ``memory`` is in bytes, a safe share of what is free if None; ``precision`` is
    that of the linear passes alone; ``tolerance`` of None follows dtype and precision; ``shard`` is
    ``"auto"`` until the environment has been asked.

    The last two fields are no options but come from the result file that ``--config RESULT.h5`` repeats:
    ``repeated_plan``, whose choice is then taken over and not measured again, and ``repeated_arch_sha256``,
    with which the architecture's source is compared where its name is given again.
    """

    model: Annotated[str, Option(parse_text, _NUMBERS, plan=True, file=File.WHOLE, positional=True)]
    inputs: Annotated[str, Option(parse_text, _NUMBERS, plan=True, file=File.WHOLE, positional=True)]
    out: Annotated[str, Option(parse_text, _NOTHING, file=File.WRITTEN, repeated=False)] = "out.h5"
    arch: Annotated[str | None, Option(parse_text, _NUMBERS, plan=True, file=File.WHOLE)] = None
    arch_arg: Annotated[Mapping[str, Any], Option(parse_assignments, _NUMBERS, plan=True)] = field(
        default_factory=dict
    )
    weights_key: Annotated[str | None, Option(parse_text, _NUMBERS, plan=True)] = None
    strip_prefix: Annotated[str | None, Option(parse_text, _NUMBERS, plan=True)] = None
    ema: Annotated[bool | None, Option(parse_flag, _NUMBERS, plan=True)] = None
    ignore_extra_weights: Annotated[bool, Option(parse_flag, _NUMBERS, plan=True)] = False
    arg: Annotated[Mapping[str, Any], Option(parse_arguments, _NUMBERS, plan=True, file=File.INSIDE)] = field(
        default_factory=dict
    )
    constant: Annotated[Mapping[str, str], Option(parse_files, _NUMBERS, plan=True, file=File.EACH)] = field(
        default_factory=dict
    )
    input_arg: Annotated[str | None, Option(parse_dotted_name, _NUMBERS, plan=True)] = None
    select: Annotated[str | None, Option(parse_name_or_index, _NUMBERS, plan=True)] = None
    allow_pickle: Annotated[bool, Option(parse_flag, _NOTHING, repeated=False)] = False
    inputs_key: Annotated[str | None, Option(parse_text, _NUMBERS, plan=True)] = None
    samples: Annotated[str | None, Option(parse_listed, _NUMBERS, plan=True)] = None
    classes: Annotated[Classes, Option(parse_classes, _NUMBERS, plan=True)] = field(default_factory=Classes)
    of: Annotated[str, Option(one_of("logits", "probs", "log-probs"), _NUMBERS, plan=True)] = "logits"
    labels: Annotated[str | None, Option(parse_text, _NUMBERS, plan=True, file=File.WHOLE)] = None
    method: Annotated[str, Option(one_of("auto", *METHOD_NAMES), Changes.ROUNDING_NOTED, plan=True)] = "auto"
    dtype: Annotated[str, Option(parse_dtype, _NUMBERS, plan=True)] = "float32"
    precision: Annotated[str, Option(one_of(*PRECISIONS), _NUMBERS, plan=True)] = "ieee"
    device: Annotated[str, Option(parse_device, Changes.ROUNDING_NOTED, plan=True)] = "auto"
    batch_size: Annotated[int | None, Option(parse_whole_or_auto, Changes.ROUNDING, plan=True)] = None
    chunk_size: Annotated[int | None, Option(parse_whole_or_auto, Changes.ROUNDING, plan=True)] = None
    memory: Annotated[int | None, Option(parse_size, _NOTHING, plan=True)] = None
    save: Annotated[str, Option(one_of("full", "factors", "none"), _NUMBERS, plan=True)] = "full"
    save_dtype: Annotated[str | None, Option(one_of("float32", "float16", "float64"), _NUMBERS)] = None
    compress: Annotated[str, Option(one_of("none", "gzip", "lzf", "zstd"), _NUMBERS)] = "none"
    save_inputs: Annotated[bool, Option(parse_flag, _NUMBERS)] = True
    singular_values: Annotated[str | int, Option(parse_singular_values, _NUMBERS, plan=True)] = "auto"
    verify: Annotated[int, Option(whole(0), _NOTHING)] = 1
    tolerance: Annotated[float | None, Option(parse_fraction, _NOTHING)] = None
    resume: Annotated[bool, Option(parse_flag, _NOTHING, repeated=False, task="never")] = True
    overwrite: Annotated[bool, Option(parse_flag, _NOTHING, repeated=False)] = False
    shard: Annotated[Shard | str | None, Option(parse_shard, Changes.PART, task="never")] = None
    seed: Annotated[int, Option(whole(0), _NUMBERS)] = 0
    quiet: Annotated[bool, Option(parse_flag, _NOTHING, repeated=False, task="submit")] = False
    json: Annotated[bool, Option(parse_flag, _NOTHING, repeated=False, in_python=False, task="submit")] = (
        False
    )
    log_every: Annotated[float, Option(parse_seconds, _NOTHING, repeated=False)] = 30.0
    debug: Annotated[bool, Option(parse_flag, _NOTHING, repeated=False, in_python=False)] = False
    dry_run: Annotated[bool, Option(parse_flag, _NOTHING, repeated=False, in_python=False, task="never")] = (
        False
    )
    repeated_plan: Mapping[str, Any] | None = None
    repeated_arch_sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON-able values; `jacli.options.config.from_options` reads them back."""
        values = {name: value for name, value in asdict(self).items() if name in OPTIONS}
        values["classes"] = str(self.classes)
        values["shard"] = None if self.shard is None else str(self.shard)
        return values


def options_of(config: type[RunConfig]) -> dict[str, Option]:
    """The rows of a table by their names; fields without a row are no options."""
    annotated = get_type_hints(config, include_extras=True).items()
    rows = ((name, getattr(hint, "__metadata__", ())) for name, hint in annotated)
    return {name: row for name, metadata in rows for row in metadata if isinstance(row, Option)}


OPTIONS = options_of(RunConfig)
"""Every option by its name."""


def names_of(asked: Callable[[Option], bool]) -> tuple[str, ...]:
    """The names of the options of which something is true, in the order of the table.

    >>> names_of(lambda option: option.file is File.WRITTEN)
    ('out',)
    """
    return tuple(name for name, option in OPTIONS.items() if asked(option))


POSITIONAL = names_of(lambda option: option.positional)
"""The options that are typed without a flag, in their order."""


def flag_of(name: str, value: object = None) -> str:
    """An option as it is typed, and named in messages; with the value False its negative.

    >>> flag_of("batch_size"), flag_of("model"), flag_of("save_inputs", False)
    ('--batch-size', 'MODEL', '--no-save-inputs')
    """
    hyphened = name.rstrip("_").replace("_", "-")  # `for_`: a keyword of Python
    return name.upper() if name in POSITIONAL else f"--no-{hyphened}" if value is False else f"--{hyphened}"


def usual_options() -> dict[str, Any]:
    """Every option's default as JSON: what a file says that is older than the option."""
    usual: dict[str, Any] = json.loads(json.dumps(RunConfig("-", "-").to_dict()))
    return usual
