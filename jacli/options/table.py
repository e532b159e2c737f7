"""The one table of options: of each, what it changes, whether it names a file, who takes it.  No torch.

Every list of options that another room needs is derived from it by a question (`names_of`).  A new option is
a row here, a field of `jacli.options.config.RunConfig` with its default, and a flag of the command.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal

from jacli.options.methods import METHOD_NAMES, PRECISIONS
from jacli.options.values import (
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
    """Its value holds names of files that are read."""
    WRITTEN = auto()
    """Its value is written."""


@dataclass(frozen=True)
class Option:
    """One option of ``jacli compute``.

    Attributes:
        name: With underscores; the flag has hyphens.
        parse: From text, or a value as TOML and JSON have it; raises ``ValueError`` with what it must be.
        changes: What another value changes.
        plan: Whether the plan that another value was chosen for no longer fits.
        file: How it names a file, if it does.
        repeated: Whether ``--config RESULT.h5`` takes it over; not what says where and how loudly, or would
            run code because a file says so.
        in_python: Whether `jacli.compute` takes it; not what is about the command's own printing.
        task: Who takes it of ``jacli submit``: each ``task`` of the array, ``submit`` itself, or nobody
            (``never``), since a task has its shard, always resumes and always computes.
    """

    name: str
    parse: Callable[[Any], Any]
    changes: Changes
    plan: bool = False
    file: File | None = None
    repeated: bool = True
    in_python: bool = True
    task: Literal["task", "submit", "never"] = "task"


TABLE = (
    Option("model", parse_text, Changes.NUMBERS, plan=True, file=File.WHOLE),
    Option("inputs", parse_text, Changes.NUMBERS, plan=True, file=File.WHOLE),
    Option("out", parse_text, Changes.NOTHING, file=File.WRITTEN, repeated=False),
    Option("arch", parse_text, Changes.NUMBERS, plan=True, file=File.WHOLE),
    Option("arch_arg", parse_assignments, Changes.NUMBERS, plan=True),
    Option("weights_key", parse_text, Changes.NUMBERS, plan=True),
    Option("strip_prefix", parse_text, Changes.NUMBERS, plan=True),
    Option("ema", parse_flag, Changes.NUMBERS, plan=True),
    Option("ignore_extra_weights", parse_flag, Changes.NUMBERS, plan=True),
    Option("arg", parse_arguments, Changes.NUMBERS, plan=True, file=File.INSIDE),
    Option("constant", parse_files, Changes.NUMBERS, plan=True, file=File.INSIDE),
    Option("input_arg", parse_dotted_name, Changes.NUMBERS, plan=True),
    Option("select", lambda value: parse_text(str(value)), Changes.NUMBERS, plan=True),
    Option("allow_pickle", parse_flag, Changes.NOTHING, repeated=False),
    Option("inputs_key", parse_text, Changes.NUMBERS, plan=True),
    Option("samples", lambda value: parse_text(joined(value)), Changes.NUMBERS, plan=True),
    Option("classes", parse_classes, Changes.NUMBERS, plan=True),
    Option("of", one_of("logits", "probs", "log-probs"), Changes.NUMBERS, plan=True),
    Option("labels", parse_text, Changes.NUMBERS, plan=True, file=File.WHOLE),
    Option("method", one_of("auto", *METHOD_NAMES), Changes.ROUNDING_NOTED, plan=True),
    Option("dtype", parse_dtype, Changes.NUMBERS, plan=True),
    Option("precision", one_of(*PRECISIONS), Changes.NUMBERS, plan=True),
    Option("device", parse_device, Changes.ROUNDING_NOTED, plan=True),
    Option("batch_size", parse_whole_or_auto, Changes.ROUNDING, plan=True),
    Option("chunk_size", parse_whole_or_auto, Changes.ROUNDING, plan=True),
    Option("memory", parse_size, Changes.NOTHING, plan=True),
    Option("save", one_of("full", "factors", "none"), Changes.NUMBERS, plan=True),
    Option("save_dtype", one_of("float32", "float16", "float64"), Changes.NUMBERS),
    Option("compress", one_of("none", "gzip", "lzf", "zstd"), Changes.NUMBERS),
    Option("save_inputs", parse_flag, Changes.NUMBERS),
    Option("singular_values", parse_singular_values, Changes.NUMBERS, plan=True),
    Option("verify", whole(0), Changes.NOTHING),
    Option("tolerance", parse_fraction, Changes.NOTHING),
    Option("resume", parse_flag, Changes.NOTHING, repeated=False, task="never"),
    Option("overwrite", parse_flag, Changes.NOTHING, repeated=False),
    Option("shard", parse_shard, Changes.PART, task="never"),
    Option("seed", whole(0), Changes.NUMBERS),
    Option("quiet", parse_flag, Changes.NOTHING, repeated=False, task="submit"),
    Option("json", parse_flag, Changes.NOTHING, repeated=False, in_python=False, task="submit"),
    Option("log_every", parse_seconds, Changes.NOTHING, repeated=False),
    Option("debug", parse_flag, Changes.NOTHING, repeated=False, in_python=False),
    Option("dry_run", parse_flag, Changes.NOTHING, repeated=False, in_python=False, task="never"),
)

OPTIONS = {option.name: option for option in TABLE}
"""Every option by its name."""


def names_of(asked: Callable[[Option], bool]) -> tuple[str, ...]:
    """The names of the options of which something is true, in the order of the table.

    >>> names_of(lambda option: option.file is File.WRITTEN)
    ('out',)
    """
    return tuple(option.name for option in TABLE if asked(option))
