"""Escape text of unknown origin: for a terminal, a log, a table, and as words of a shell command.

File names, keys, attributes and messages of libraries may hold anything: escape sequences that rewrite the
screen, line breaks that forge a line of ours, characters that reverse the order of others.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

_WORD = re.compile(r"""(?:\$'(?:[^'\\]|\\.)*'|'[^']*'|"(?:[^"\\]|\\.)*"|\\.|[^\s'"\\])+""", re.DOTALL)
_ANSI_C = re.compile(r"\$'((?:[^'\\]|\\.)*)'", re.DOTALL)


def count_of(number: int, noun: str) -> str:
    """A number and what is counted, in the plural where it is not one.

    >>> count_of(1, "sample"), count_of(0, "batch"), count_of(1200, "tensor")
    ('1 sample', '0 batches', '1200 tensors')
    """
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith(('s', 'sh', 'ch', 'x')) else 's'}"


def capitalised(text: str) -> str:
    """The same with a capital first letter; the others stay as they are.

    >>> capitalised("its ReLU is scripted")
    'Its ReLU is scripted'
    """
    return text[:1].upper() + text[1:]


class Lines(str):
    """Text whose line breaks are meant: everything else is printed on one line."""


def escape(text: str, *, keep: str = "") -> str:
    r"""Write every character that does not print as a backslash escape, as Python's `repr` does.

    These are controls (C0, DEL, C1), line and paragraph separators, bidirectional and other invisible
    formatting, lone surrogates, unassigned characters, and spaces other than the common one.  A byte of
    a name that is no UTF-8 becomes ``\xff``.

    Args:
        text: Anything.
        keep: Characters that stay as they are.

    >>> escape("a\x1b[2J\nb")
    'a\\x1b[2J\\nb'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that was no UTF-8, as `os.fsdecode` keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return repr(character)[1:-1]


def escape_lines(text: str) -> list[str]:
    r"""The lines to print for a text: one, unless it is `Lines`.

    >>> escape_lines("a\nb"), escape_lines(Lines("a\nb"))
    (['a\\nb'], ['a', 'b'])
    """
    return [escape(line) for line in (text.split("\n") if isinstance(text, Lines) else [text])]


def quote(word: str) -> str:
    r"""A word for a shell, in characters that print: where `shlex.quote` keeps others, ``$'...'``.

    >>> quote("my file"), quote("my\nfile")
    ("'my file'", "$'my\\x0afile'")
    """
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(_ansi_c(character) for character in word) + "'"


def _ansi_c(character: str) -> str:
    if character in "\\'":
        return "\\" + character
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in _bytes(character))


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, which no file name and no argument can hold
        return text.encode("utf-8", "backslashreplace")


def as_argument(path: object) -> str:
    """A path as an argument which no command takes for an option: ``-x.h5`` -> ``./-x.h5``.

    >>> as_argument("-x.h5"), as_argument("x.h5")
    ('./-x.h5', 'x.h5')
    """
    text = str(path)
    return f"./{text}" if text.startswith("-") else text


def quote_path(path: object) -> str:
    """A path as a word for a shell which no command takes for an option.

    >>> quote_path("-my file.h5")
    "'./-my file.h5'"
    """
    return quote(as_argument(path))


def join_words(words: Iterable[str]) -> str:
    """A command for a shell, on one line; `split_words` reads it back.

    >>> join_words(["jacli", "inspect", "my model.pt"])
    "jacli inspect 'my model.pt'"
    """
    return " ".join(map(quote, words))


def split_words(command: str) -> list[str]:
    """The words of a command that `join_words` or `shlex.join` wrote.

    >>> split_words("jacli inspect 'my model.pt'")
    ['jacli', 'inspect', 'my model.pt']
    >>> split_words("jacli 'inspect")
    Traceback (most recent call last):
        ...
    ValueError: a quotation does not end

    Raises:
        ValueError: A quotation does not end.
    """
    words, end = [], 0
    for word in _WORD.finditer(command):
        if command[end : word.start()].strip():
            break
        end = word.end()
        quoted = _ANSI_C.fullmatch(word[0])
        words.append(_from_ansi_c(quoted[1]) if quoted else "".join(shlex.split(word[0])))
    if command[end:].strip():
        raise ValueError("a quotation does not end")
    return words


def _from_ansi_c(text: str) -> str:
    content = re.sub(
        rb"\\(?:x([0-9a-f]{2})|(.))",
        lambda found: bytes([int(found[1], 16)]) if found[1] else found[2],
        _bytes(text),
        flags=re.DOTALL,
    )
    return content.decode("utf-8", "surrogateescape")
