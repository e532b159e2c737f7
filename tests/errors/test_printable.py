"""Text of unknown origin: what is escaped, and words of commands that a shell reads back."""

from __future__ import annotations

import random
import shlex
import subprocess

import pytest

from jacli.errors.printable import (
    Lines,
    as_argument,
    escape,
    escape_lines,
    join_words,
    quote,
    quote_path,
    split_words,
)

HARMFUL = {
    "escape sequence": "\x1b[2J",
    "bell": "\x07",
    "carriage return": "\r",
    "line break": "\n",
    "null": "\0",
    "DEL": "\x7f",
    "C1 control sequence": "\x9b31m",
    "next line": "\x85",
    "right-to-left override": "\u202e",
    "isolate": "\u2066",
    "right-to-left mark": "\u200f",
    "zero width": "\u200b",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "byte that is no UTF-8": "\udcff",
    "half a character": "\ud800",
    "tag": "\U000e0041",
    "byte order mark": "\ufeff",
}


@pytest.mark.parametrize("text", HARMFUL.values(), ids=HARMFUL.keys())
def test_what_does_not_print_is_escaped(text: str) -> None:
    escaped = escape(f"a{text}b")
    assert escaped.isprintable() and escaped[0] == "a" and escaped[-1] == "b" and "\\" in escaped
    assert escape(escaped) == escaped


def test_what_prints_stays_as_it_is() -> None:
    for text in ("", "out.h5", "größe 漢字 Ж", r"C:\new", "it's"):
        assert escape(text) == text


def test_escapes_are_those_of_python_and_bytes_are_bytes() -> None:
    assert escape("\x1b\n\u202e\udcff") == r"\x1b\n\u202e\xff"
    assert escape("a\n\x1bb", keep="\n") == "a\n\\x1bb"


def test_line_breaks_are_kept_where_they_are_meant() -> None:
    assert escape_lines("a\nb") == [r"a\nb"]
    assert escape_lines(Lines("a\nb\x1b")) == ["a", r"b\x1b"]


@pytest.mark.parametrize("word", [w for w in HARMFUL.values() if "\0" not in w and "\ud800" not in w])
def test_bash_reads_a_quoted_word_back(word: str) -> None:
    word = f"-'\\{word}7 x"
    assert quote(word).isprintable()
    ran = subprocess.run(["bash", "-c", f"printf %s {quote(word)}"], capture_output=True, check=True)
    assert ran.stdout == word.encode("utf-8", "surrogateescape")


def test_commands_are_read_back() -> None:
    draw = random.Random(0)
    for _ in range(3000):
        words = ["".join(draw.choices("a$' \\\"\n\udcff\u202e#x0;é", k=draw.randint(0, 6))) for _ in range(3)]
        assert split_words(join_words(words)) == words
        assert split_words(shlex.join(words)) == words  # of earlier versions
    assert split_words("  jacli   compute ") == ["jacli", "compute"]
    for unfinished in ("jacli 'a", 'jacli "a', "jacli $'a", "'"):
        with pytest.raises(ValueError, match="quotation"):
            split_words(unfinished)


def test_a_path_is_never_an_option() -> None:
    assert as_argument("-x.h5") == "./-x.h5" and as_argument("a-x.h5") == "a-x.h5"
    assert quote_path("-my file.h5") == "'./-my file.h5'"
