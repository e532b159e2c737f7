"""Usage errors in jacli's style: what typer would refuse, word by word, is refused here, all at once.

Options that do not exist, values that are missing, arguments too many or too few are found in one pass over
the words of the command line, before typer parses them.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup

from jacli.errors import JacliError, UsageError
from jacli.errors.printable import count_of, join_words
from jacli.options.config import MissingError, parse_values
from jacli.options.table import OPTIONS, POSITIONAL
from jacli.untrusted.content import Content, recognise_content

_TRUTH_VALUES = ("yes", "no", "true", "false", "on", "off", "0", "1")
_LISTED = 3
_FEW = 8


@dataclass
class Words:
    """The words of a command line, sorted by what they are.

    Attributes:
        arguments: The arguments, in order.
        stray: Positions in ``arguments`` that follow an unknown option: perhaps its value.
        flags: Position in ``arguments`` -> the flag that the argument follows.
        options: The options that are right, with their values.
        problems: What is wrong with options.
        asks_help: Whether ``--help`` is among them.
    """

    arguments: list[str] = field(default_factory=list)
    stray: set[int] = field(default_factory=set)
    flags: dict[int, str] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)
    problems: list[JacliError] = field(default_factory=list)
    asks_help: bool = False


def sort_words(args: Sequence[str], options: Mapping[str, Any], path: str) -> Words:
    """Tell options, their values and arguments apart, as click does.

    Args:
        args: The words after the command's name.
        options: Every name of an option (``--out``, ``-o``) -> its parameter.
        path: The command, for messages: ``jacli compute``.
    """
    sorted_words, rest = Words(), list(args)
    after_unknown, after_flag = False, ""
    while rest:
        word = rest.pop(0)
        if word == "--":
            sorted_words.arguments += rest
            break
        if len(word) < 2 or not word.startswith("-"):
            if after_unknown:
                sorted_words.stray.add(len(sorted_words.arguments))
            if after_flag:
                sorted_words.flags[len(sorted_words.arguments)] = after_flag
            sorted_words.arguments.append(word)
            after_unknown, after_flag = False, ""
            continue
        name, value = _split(word, options)
        parameter = options.get(name)
        after_unknown = parameter is None and value is None
        after_flag = name if parameter is not None and parameter.is_flag else ""
        if parameter is None:
            sorted_words.problems.append(_unknown(name, options, path))
        elif parameter.is_flag:
            sorted_words.asks_help |= parameter.name == "help"
            if value is None:
                sorted_words.options.append(word)
            else:
                why = f"It is switched on by its name alone, and {value!r} came with it."
                sorted_words.problems.append(
                    UsageError(f"{name} takes no value.", why=why, hint=f"Write {name}.")
                )
        elif value is not None:
            sorted_words.options.append(word)
        elif not rest or rest[0].partition("=")[0] in options:
            why = f"What follows is {rest[0]}." if rest else "Nothing follows it."
            meant = parameter.metavar or "VALUE"
            sorted_words.problems.append(
                UsageError(f"{name} needs a value.", why=why, hint=f"Write {name} {meant}.")
            )
        else:
            sorted_words.options += [word, rest.pop(0)]
    return sorted_words


def _split(word: str, options: Mapping[str, Any]) -> tuple[str, str | None]:
    """The name of an option and the value that is part of the same word."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        return name, value if equals else None
    long, short = word.partition("=")[0], word[:2]
    if (len(long) > 2 and f"-{long}" in options) or short not in options:
        return long, None  # -out, which would be -o with the file `ut`
    return short, word[2:] or None


def _unknown(name: str, options: Mapping[str, Any], path: str) -> UsageError:
    long = [option for option in options if option.startswith("--")]
    why = f"{path} has {', '.join(long)}." if len(long) <= _FEW else f"{path} has {len(long)} others."
    near = _close(name, long)
    if f"-{name}" in options:
        why, near = "Long names begin with two hyphens.", [f"-{name}"]
    hint = f"Did you mean {' or '.join(near)}?" if near else ""
    return UsageError(f"There is no option {name}.", why=why, hint=hint)


def _close(name: str, known: Sequence[str]) -> list[str]:
    """Options that were probably meant: by spelling, or where one name begins the other."""
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.7)
    if near or len(name) < 5:
        return near
    return [option for option in known if option.startswith(name) or name.startswith(f"{option}-")][:2]


def parse_all(
    command: str,
    typed: Mapping[str, tuple[str | None, Callable[[str], Any]]],
    problems: Sequence[JacliError] = (),
) -> dict[str, Any]:
    """The values of a command's own options; None where nothing was typed.

    Args:
        command: Its name.
        typed: Option (underscores) -> what was typed, None if nothing was, and its parser, which raises
            ValueError with what the value must be.
        problems: What else is wrong.

    Raises:
        UsageError: With everything that is wrong.
    """
    given = {name: value for name, (value, _) in typed.items() if value is not None}
    parsed, wrong = parse_values(given, {name: parse for name, (_, parse) in typed.items()})
    if problems or wrong:
        raise UsageError.from_problems([*problems, *wrong], command=f"jacli {command}")
    return dict.fromkeys(typed) | parsed


class Command(TyperCommand):
    """A command that reports everything that is wrong with its words in one `UsageError`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words; typer's own refusals do not come up."""
        if not ctx.resilient_parsing:  # of shell completion
            args = self._checked(ctx, args)
        return super().parse_args(ctx, args)

    def _checked(self, ctx: Any, args: list[str]) -> list[str]:
        """The words, if they are right; ``--help`` alone, if it is among them.

        Raises:
            UsageError: With everything that is wrong.
        """
        parameters = self.get_params(ctx)
        options = {name: p for p in parameters for name in (*p.opts, *p.secondary_opts) if name[:1] == "-"}
        words = sort_words(args, options, ctx.command_path)
        if words.asks_help:
            return ["--help"]
        arguments = [p for p in parameters if p.param_type_name == "argument"]
        path = ctx.command_path
        problems = [*words.problems, *_too_many(path, arguments, words)]
        problems += _too_few(path, arguments, words, example_of(self))
        if not problems:
            return args
        problems += self._wrong_values(ctx, arguments, words)
        raise UsageError.from_problems(problems, command=path)

    def _wrong_values(self, ctx: Any, arguments: Sequence[Any], words: Words) -> list[JacliError]:
        """Problems with the values of a run's options, besides unknown words."""
        if not _takes_a_run(arguments):
            return []
        from jacli.run.config_file import resolve_options

        super().parse_args(ctx, words.options)
        given = {name: value for name, value in ctx.params.items() if name in OPTIONS or name == "config"}
        try:
            resolve_options(given | dict(zip(POSITIONAL, words.arguments, strict=False)))
        except UsageError as error:  # arguments that are missing are found among the words
            return [p for p in error.problems or (error,) if not isinstance(p, MissingError)]
        except JacliError:
            pass  # of the file that --config names: reported when the words are right
        return []


class Group(TyperGroup):
    """The commands: a wrong name, or an option before it, is refused with what was meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what stands before the command's name."""
        options = {name for p in self.get_params(ctx) for name in p.opts}
        first = args[0] if args else ""
        if not ctx.resilient_parsing and first.startswith("-") and first not in options:
            name = first.partition("=")[0]
            near = difflib.get_close_matches(name, options, n=1)
            raise UsageError(
                f"There is no option {name} before the command's name.",
                why="The options of a command follow its name: jacli compute model.pt inputs.npy --quiet.",
                hint=f"{f'Did you mean {near[0]}? ' if near else ''}`jacli --help` lists the commands.",
            )
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command that the first word names."""
        name = args[0]
        if name not in self.commands and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, self.commands, n=1)
            hint = f"{f'Did you mean {near[0]}? ' if near else ''}`jacli --help` says what each does."
            if os.path.exists(name):
                command = "compute" if len(args) > 1 else "inspect"
                hint = f"Did you mean: jacli {command} {join_words(args)}"
            raise UsageError(
                f"There is no command {name}.", why=f"There are {', '.join(self.commands)}.", hint=hint
            )
        return super().resolve_command(ctx, args)


def example_of(command: Any) -> str:
    """The example that a command's help begins with."""
    first: str = (command.help or "").partition("\n")[0]
    return first.removeprefix("Example: ").rstrip(".")


def _takes_a_run(arguments: Sequence[Any]) -> bool:
    """Whether these are MODEL and INPUTS of a run, with its options."""
    return tuple(p.name for p in arguments) == POSITIONAL


def _named(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name).upper()


def _too_few(path: str, arguments: Sequence[Any], words: Words, example: str) -> Iterator[JacliError]:
    configured = any(word.partition("=")[0] == "--config" for word in words.options)
    of_run = _takes_a_run(arguments) and not configured  # a file of options may name them
    needed_ones = [p for p in arguments if p.required or of_run]
    missing = [p for p in needed_ones if p in arguments[len(words.arguments) :]]
    if missing:
        names = " and ".join(map(_named, missing))
        needed = " and ".join(map(_named, needed_ones))
        why, hint = f"{path} needs {needed}.", f"For example: `{example}`."
        yield UsageError(f"No {names} given.", why=why, hint=hint)


def _too_many(path: str, arguments: Sequence[Any], words: Words) -> Iterator[JacliError]:
    if any(p.nargs == -1 for p in arguments):
        return
    given = [word for at, word in enumerate(words.arguments) if at not in words.stray]
    at_most = len(arguments)
    if len(words.arguments) <= at_most or len(given) <= at_most:
        return
    takes = " and ".join(map(_named, arguments)) or "no argument"
    extra = given[at_most:]
    listed = ", ".join(extra[:_LISTED]) + (", ..." if len(extra) > _LISTED else "")
    why = f"Beside {'these' if at_most > 1 else 'it'} came {listed}." if at_most else f"There came {listed}."
    flag = words.flags.get(len(words.arguments) - 1)
    if at_most == 2 and sum(map(_is_image, given[1:])) > 1:
        what = f"{count_of(len(given) - 1, 'file')} came as INPUTS: {path} takes one array of all samples."
        why = "They look like images, one per file; a shell expands *.jpg to as many arguments."
        hint = (
            "Decode and preprocess them as for the model's training, save them as one array, "
            "np.save('inputs.npy', np.stack(images)), and give it: "
            f"`{path} {join_words([given[0], 'inputs.npy'])}`."
        )
        yield UsageError(what, why=why, hint=hint)
        return
    hint = "Leave out what is too many; a name with spaces stands in quotes."
    if flag and extra[-1].lower() in _TRUTH_VALUES:
        hint = f"{flag} is switched on by its name alone: leave {extra[-1]} out."
    elif at_most == 2 and all(Path(word).suffix == Path(given[1]).suffix for word in extra):
        hint = (
            "Join them into one file, np.save('inputs.npy', np.concatenate(arrays)), or compute one by one."
        )
    yield UsageError(f"{path} takes {takes}, and {len(given)} arguments came.", why=why, hint=hint)


def _is_image(word: str) -> bool:
    try:
        return recognise_content(Path(word)) is Content.IMAGE
    except (OSError, ValueError):
        return False
