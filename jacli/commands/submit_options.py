"""Options of ``jacli submit``: those of the array, beside every option of ``jacli compute``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jacli.cluster.launchers import LAUNCHERS
from jacli.cluster.slurm import NOT_OF_TASKS, Job, Resources
from jacli.errors import JacliError, UsageError
from jacli.options.config import parse_values
from jacli.options.table import OPTIONS, POSITIONAL, File, RunConfig, flag_of, names_of
from jacli.options.values import one_of, parse_text, whole
from jacli.run.config_file import resolve_options

_NOT_PASSED_ON = names_of(lambda o: o.positional or o.file is File.WRITTEN or o.task == "submit")
"""Options that are not given to a task as flags as they were typed: it gets OUT as an absolute path."""


@dataclass(frozen=True)
class SlurmOptions:
    """Options of the job array, named as on the command line.

    Attributes:
        time: As typed; Slurm writes it in several ways.
    """

    shards: int
    for_: str = "slurm"
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    gpus: str | None = None
    cpus: int | None = None
    mem: str | None = None
    array_limit: int | None = None
    notice: int = 120
    job_name: str | None = None
    sbatch: tuple[tuple[str, str], ...] = ()
    setup: tuple[str, ...] = ()

    def resources(self, out: Path) -> Resources:
        """Resources of each task."""
        return Resources(
            job_name=self.job_name or f"jacli-{out.stem}",
            partition=self.partition,
            account=self.account,
            time=self.time,
            gpus=self.gpus,
            cpus=self.cpus,
            memory=self.mem,
            further=self.sbatch,
        )


def resolve_submission(flags: Mapping[str, Any]) -> tuple[RunConfig, SlurmOptions, tuple[str, ...]]:
    """The run, the array, and the run's options as a task is to be given them (without ``--out``).

    Raises:
        UsageError: Naming every wrong option of both.
    """
    own = {name: flags[name] for name in PARSERS if flags.get(name) not in (None, [])}
    of_run = {name: value for name, value in flags.items() if name in OPTIONS or name == "config"}
    problems: list[JacliError] = []
    config: RunConfig | None = None
    try:
        config = resolve_options(of_run)
        problems += _not_of_tasks(config)
    except UsageError as error:
        problems += error.problems or (error,)
    parsed, wrong = parse_values(own, PARSERS)
    problems += wrong
    problems += _contradictions(own, parsed)
    if problems or config is None:
        raise UsageError.from_problems(problems, command="jacli submit")
    return config, SlurmOptions(**parsed), tuple(_arguments(of_run))


def _not_of_tasks(config: RunConfig) -> list[JacliError]:
    """Such options can only come from a configuration file: the command has no flags for them."""
    return [
        UsageError(
            f"--config sets {name}, which is not for an array.",
            why="Each task gets its own shard, always resumes, and always computes.",
            hint="Take it out of the file.",
        )
        for name in NOT_OF_TASKS
        if getattr(config, name) != getattr(RunConfig, name)
    ]


def _contradictions(own: Mapping[str, Any], parsed: Mapping[str, Any]) -> list[JacliError]:
    problems: list[JacliError] = []
    if "shards" not in own:
        problems.append(
            UsageError(
                "--shards is not given.",
                why="It sets the number of tasks that share the samples.",
                hint="For example: `jacli submit model.pt inputs.npy --shards 16`.",
            )
        )
    notice = parsed.get("notice", SlurmOptions.notice)
    if "time" in parsed and seconds_of(parsed["time"]) <= notice:
        problems.append(
            UsageError(
                f"--time {parsed['time']} is too short.",
                why=f"{notice} s before its end, a task gets the signal to save, and is requeued.",
                hint="Give more --time, or less --notice.",
            )
        )
    return problems


def _arguments(of_run: Mapping[str, Any]) -> list[str]:
    """The command line of the run, back from its options; a path that begins with a hyphen gets ``./``."""
    paths = [of_run[name] for name in POSITIONAL if of_run.get(name)]
    arguments = [f"./{path}" if path.startswith("-") else path for path in paths]
    for name, value in of_run.items():
        if value is None or name in _NOT_PASSED_ON:
            continue
        flag = flag_of(name, value)
        if isinstance(value, bool):
            arguments.append(flag)
            continue
        for text in value if isinstance(value, (list, tuple)) else [value]:
            arguments += [f"{flag}={text}"] if str(text).startswith("-") else [flag, str(text)]
    return arguments


_NOT_IN_A_SCRIPT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters, and bytes of a path that are no UTF-8 (as Python reads them)."""


def refuse_unprintable(job: Job) -> None:
    """A script is lines of text, and Slurm reads a log's name in its own way.

    Raises:
        UsageError: Naming the text.
    """
    resources = job.resources
    named = (value for pair in resources.further for value in pair)
    values = (resources.job_name, resources.partition, resources.account, *named)
    for text in (*job.arguments, str(job.folder), *job.setup, *job.program, *filter(None, values)):
        if _NOT_IN_A_SCRIPT.search(text):
            raise UsageError(
                f"{text!r} cannot be part of a batch script.",
                why="It holds a line break or another control character, or is not UTF-8.",
                hint="Rename the file, or repeat --setup for each line.",
            )
    if "\\" in str(job.logs):
        raise UsageError(
            f"{job.logs} cannot hold the logs.",
            why="Slurm gives a backslash in the name of a log a meaning of its own.",
            hint="Choose an -o without a backslash in its path.",
        )


def seconds_of(time: str) -> int:
    """Slurm's time limits: ``M``, ``M:S``, ``H:M:S``, ``D-H``, ``D-H:M``, ``D-H:M:S``.

    >>> seconds_of("90"), seconds_of("1:30:00"), seconds_of("2-12")
    (5400, 5400, 216000)
    """
    days, dash, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if dash:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, minutes, seconds = 0, *(*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _parse_shards(value: str) -> int:
    if not re.fullmatch(r"\d{1,5}", value) or int(value) == 0:  # five digits are in a shard's name
        raise ValueError("a whole number from 1 to 99999")
    return int(value)


def _parse_time(value: str) -> str:
    if not re.fullmatch(r"\d+(:\d\d){0,2}|\d+-\d\d?(:\d\d){0,2}", value) or not seconds_of(value):
        raise ValueError("a time as Slurm writes it: 90 (minutes), 4:00:00 or 2-12:00:00")
    return value


def _parse_gpus(value: str) -> str:
    if not re.fullmatch(r"([\w.-]+:)?1", value):
        raise ValueError("1, or TYPE:1 (a shard runs on one GPU: more --shards use more of them)")
    return value


def _parse_mem(value: str) -> str:
    if not re.fullmatch(r"\d+[KMGT]?", value, flags=re.IGNORECASE):
        raise ValueError("a size as Slurm writes it: 8G or 16000M")
    return value


_OWN_FLAG = {
    "partition": "--partition",
    "account": "--account",
    "time": "--time",
    "gpus": "--gpus",
    "cpus-per-task": "--cpus",
    "mem": "--mem",
    "job-name": "--job-name",
    "array": "--shards and --array-limit",
    "signal": "--notice",
}
_FIXED = ("requeue", "no-requeue", "open-mode", "output", "error", "chdir", "dependency", "wrap", "parsable")


def _parse_sbatch(values: list[str]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in values:
        key, equals, value = text.removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", key) or (equals and not value):
            raise ValueError("KEY=VALUE, or KEY, as sbatch has it: qos=long, exclusive")
        if key in _OWN_FLAG:
            raise ValueError(f"another one than {key}, which is {_OWN_FLAG[key]}")
        if key in _FIXED:
            raise ValueError(f"another one than {key}, which jacli submit sets itself")
        pairs.append((key, value))
    return tuple(pairs)


PARSERS: dict[str, Callable[[Any], Any]] = {
    "shards": _parse_shards,
    "for_": one_of(*LAUNCHERS),
    "partition": parse_text,
    "account": parse_text,
    "time": _parse_time,
    "gpus": _parse_gpus,
    "cpus": whole(1),
    "mem": _parse_mem,
    "array_limit": whole(1),
    "notice": whole(1, 65_535),
    "job_name": parse_text,
    "sbatch": _parse_sbatch,
    "setup": tuple,
}
"""Options of the array: name to parser, as the parsers of `jacli.options.table`."""
