"""Names, keys, attributes and messages that would act on a terminal or forge a line: every command."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jacli.cluster import shard_path
from jacli.options.values import Shard
from jacli.store import part_path
from tests.run.shard_files import unfinished, write_shard, write_shards

EVIL = "a\x1b[2J\x9b31m\nnext: touch MARK\r\u202e\u2028\x7f"
"""Clears the screen, colours it, and forges a line."""


def check(ran: object, *codes: int) -> str:
    """Nothing of it reaches the terminal; everything that was printed."""
    text = ran.out + ran.err  # type: ignore[attr-defined]
    assert ran.code in codes, text  # type: ignore[attr-defined]
    assert all(character.isprintable() or character == "\n" for character in text), text
    assert not any(line.strip().startswith("next: touch") for line in text.splitlines()), text
    assert "touch MARK" in text
    return text


@pytest.mark.parametrize(
    "arguments",
    [
        ("summarize", "FILE"),
        ("summarize", "FILE", "OTHER"),
        ("summarize", "FILE", "OTHER", "--format", "csv"),
        ("summarize", "FILE", "OTHER", "--format", "markdown"),
        ("summarize", "FILE", "OTHER", "--format", "jsonl"),
        ("summarize", "FILE", "--sort", EVIL),
        ("summarize", "FILE", "--dataset", EVIL),
        ("inspect", "FILE"),
        ("inspect", "FILE", "--json"),
        ("status", "FILE"),
        ("verify", "FILE"),
        ("merge", "FILE"),
        ("doctor", "FILE"),
        ("compute", "FILE", "x.npy"),
        ("compute", "m.pt", "FILE", "--inputs-key", EVIL),
        ("compute", "--config", "FILE", "--classes", EVIL),
        ("compute", "m.pt", "x.npy", "-o", "FILE", "--method", "loop", "--overwrite"),
        ("compute", "m.pt", "x.npy", "--classes", EVIL, "--samples", EVIL, "--of", EVIL),
        ("bench", "m.pt", "x.npy", "--classes", EVIL, "--limit", EVIL),
        ("submit", "m.pt", "x.npy", "--shards", EVIL),
    ],
    ids=lambda words: " ".join(words[:4]).replace(EVIL, "EVIL"),
)
def test_names_of_files_and_values_of_options(
    jacli: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (EVIL, "other"):
        write_shard(tmp_path / name, Shard(1, 1)).rename(tmp_path / name)
    torch.jit.script(nn.Flatten()).save("m.pt")
    np.save("x.npy", np.ones((2, 3), np.float32))
    found = {"FILE": EVIL, "OTHER": "other"}
    check(jacli(*(found.get(word, word) for word in arguments)), 0, 2, 3, 4, 6)


def test_the_commands_that_are_printed_can_be_run(
    jacli: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-x.h5", "a b\n.h5", os.fsdecode(b"n\xff.h5"), "é.h5"):
        write_shards(tmp_path / name, 2)
        ran = jacli("status", f"./{name}")
        (line,) = [line for line in ran.out.splitlines() if line.startswith("next: ")]  # type: ignore[attr-defined]
        words = subprocess.run(
            ["bash", "-c", f'jacli() {{ printf "%s\\0" "$@"; }}; {line.removeprefix("next: ")}'],
            capture_output=True,
            check=True,
        ).stdout.split(b"\0")
        assert words[0] == b"merge" and not words[1].startswith(b"-")
        assert os.path.normpath(os.fsdecode(words[1])) == name


def test_attributes_and_names_of_datasets(jacli: Callable[..., object], tmp_path: Path) -> None:
    path = write_shard(tmp_path / "r.h5", Shard(1, 1))
    with h5py.File(path, "r+") as file:
        for name in ("method", "arch", "model_path", "device_name", EVIL):
            file.attrs[name] = EVIL
        file[EVIL] = np.zeros(3)
    check(jacli("inspect", path), 0)
    assert json.loads(check(jacli("inspect", path, "--json"), 0))["attributes"]["arch"] == EVIL
    with h5py.File(path, "r+") as file:
        file.attrs["schema"] = f"jacli/{EVIL}"
    check(jacli("verify", path), 4)


def test_keys_of_inputs_and_weights(jacli: Callable[..., object], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **{EVIL: np.zeros((2, 3)), "b": np.zeros((2, 3))})
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file[EVIL], file["b"] = np.zeros((2, 3)), np.zeros((2, 3))
    torch.save({EVIL: torch.zeros(2, 3), "b": torch.zeros(2, 3)}, tmp_path / "w.pt")
    for name in ("x.npz", "x.h5", "w.pt"):
        ran = jacli("inspect", tmp_path / name, "--inputs-key", "none")
        check(ran, 4)


class Talking(nn.Module):
    """Prints, and fails, with the text that a file brings."""

    def __init__(self, text: str, *, fails: bool) -> None:
        super().__init__()
        self.text, self.fails = text, fails

    def forward(self, x: Tensor) -> Tensor:
        print(self.text)
        if self.fails:
            raise RuntimeError(self.text)
        return x.flatten(1)


@pytest.mark.parametrize("fails", [True, False])
def test_what_a_program_prints_and_raises(jacli: Callable[..., object], tmp_path: Path, fails: bool) -> None:
    torch.jit.script(Talking(EVIL.replace("\n", " "), fails=fails)).save(tmp_path / "m.pt")
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    ran = jacli("compute", tmp_path / "m.pt", tmp_path / "x.npy", "-o", tmp_path / "o.h5", "--method", "loop")
    check(ran, 4 if fails else 0)


PROGRESS = {
    "another program": {"command": ["sh", "-c", "touch MARK"]},
    "another command": {"command": ["jacli", "merge", "touch MARK"]},
    "two commands": {"command": ["jacli compute;", "touch MARK"]},
    "a path to jacli": {"command": ["./jacli", "compute", "touch MARK"]},
    "not words": {"command": ["jacli", "compute", 5]},
    "one text": {"command": "jacli compute"},
    "a folder that is a number": {"folder": 5},
    "a relative folder": {"folder": "-P /tmp; touch MARK"},
    "an unknown state": {"state": "touch MARK"},
    "samples that are no number": {"samples": "9"},
    "samples that are yes": {"samples": True},
    "more done than there is": {"done": 99},
    "a time that is NaN": {"started": float("nan")},
    "a reason that is a list": {"reason": [["touch"]]},
}


@pytest.mark.parametrize("said", PROGRESS.values(), ids=PROGRESS.keys())
def test_status_prints_no_command_but_ours(
    jacli: Callable[..., object], tmp_path: Path, said: dict[str, object]
) -> None:
    out = tmp_path / "o.h5"
    unfinished(out, "failed", folder=tmp_path, command=("jacli", "compute", "m.pt", "x.npy"))
    file = part_path(out).with_name("o.h5.part.json")
    assert "next: " in jacli("status", out).out  # type: ignore[attr-defined]
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    ran = jacli("status", out)
    assert ran.code == 0 and "next: " not in ran.out  # type: ignore[attr-defined]
    assert json.loads(jacli("status", out, "--json").out)[0]["next"] == []  # type: ignore[attr-defined]


def test_words_of_a_command_are_quoted_anew(jacli: Callable[..., object], tmp_path: Path) -> None:
    out = tmp_path / "o.h5"
    words = ("jacli", "compute", "m.pt; touch MARK", "$(touch MARK)", f"{EVIL}")
    unfinished(out, "stopped", folder=tmp_path, command=words)
    text = check(jacli("status", out), 0)
    (line,) = [line for line in text.splitlines() if line.startswith("next: ")]
    ran = subprocess.run(
        ["bash", "-c", f'jacli() {{ printf "%s\\0" "$@"; }}; {line.removeprefix("next: ")}'],
        capture_output=True,
        cwd=tmp_path,
        check=True,
    )
    assert tuple(ran.stdout.decode().split("\0")[:-1]) == words[1:]
    assert not (tmp_path / "MARK").exists()


def test_a_result_makes_status_print_no_command_but_ours(
    jacli: Callable[..., object], tmp_path: Path
) -> None:
    out = tmp_path / "o.h5"
    for command in ("sh -c 'touch MARK'", "jacli merge x", "jacli compute 'x", "jacli; touch MARK"):
        write_shard(out, Shard(1, 2), command=command)
        ran = jacli("status", out)
        (line,) = [line for line in ran.out.splitlines() if line.startswith("next: ")]  # type: ignore[attr-defined]
        assert line.startswith("next: jacli compute --config ") and "touch" not in line
        shard_path(out, Shard(1, 2)).unlink()
