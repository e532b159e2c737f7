"""A table of bad calls: each has its exit code, says what, why and what to do, and leaves nothing behind."""

from __future__ import annotations

import gzip
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.toy_models import Mixing


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.dropout(x, 0.5, True).flatten(1)


class ArgMax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).argmax(1)


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.long().float().flatten(1)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1).sin(), x.flatten(1).cos()


class Further(nn.Module):
    def forward(self, x: Tensor, scale: float) -> Tensor:
        return x.flatten(1).sin() * scale


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, 60).sin()


class Total(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin().sum()


class Seven(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin().flatten(1)[:, :7]


def _network(channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 7))


ARCH = """
from torch import nn
def make(width=6):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * width, 7))
def broken():
    raise ValueError("no such luck")
def number():
    return 7
"""


def _make_models(folder: Path) -> None:
    network = _network()
    state = network.state_dict()
    torch.jit.script(network.eval()).save(folder / "model.pt")
    torch.jit.script(_network(1).eval()).save(folder / "grey.pt")
    torch.jit.script(nn.Sequential(nn.Linear(5, 7)).eval()).save(folder / "mlp.pt")
    torch.jit.script(nn.Conv2d(3, 2, 3).eval()).save(folder / "map.pt")
    batch_statistics = nn.Sequential(nn.Conv2d(3, 7, (5, 4)), nn.BatchNorm2d(7, track_running_stats=False))
    torch.jit.script(batch_statistics.eval()).save(folder / "batch_statistics.pt")
    for name, module in {
        "mixing": Mixing(), "random": Random(), "argmax": ArgMax(), "rounded": Rounded(), "pair": Pair(),
        "further": Further(), "fixed": Fixed(), "total": Total(), "seven": Seven(),
    }.items():  # fmt: skip
        torch.jit.script(module.eval()).save(folder / f"{name}.pt")
    torch.save(state, folder / "state.pt")
    torch.save({"state_dict": state, "epoch": 3}, folder / "checkpoint.pt")
    torch.save({"a.weight": torch.zeros(2, 3), "b.bias": torch.zeros(7)}, folder / "odd.pt")
    torch.save(network, folder / "pickled.pt")
    whole = (folder / "state.pt").read_bytes()
    (folder / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    at = whole.index(state["3.weight"].numpy().tobytes()[:64])
    (folder / "flipped.pt").write_bytes(
        whole[:at] + bytes(b ^ 255 for b in whole[at : at + 8]) + whole[at + 8 :]
    )
    (folder / "empty.pt").write_bytes(b"")
    (folder / "pointer.pt").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 46830571\n"
    )
    (folder / "page.pt").write_text("<!DOCTYPE html>\n<html><body>Sign in</body></html>\n")
    (folder / "zipped.pt").write_bytes(gzip.compress(whole))
    (folder / "arch.py").write_text(ARCH)
    (folder / "syntax.py").write_text("def make(:\n")


def _make_inputs(folder: Path) -> None:
    x = np.random.default_rng(0).standard_normal((6, 3, 5, 4)).astype(np.float32)
    hole = x.copy()
    hole[2, 0, 0, 0] = np.nan
    for name, array in {
        "x": x, "u8": x.astype(np.uint8), "i64": x.astype(np.int64), "complex": x.astype(np.complex64),
        "nan": hole, "nhwc": x.transpose(0, 2, 3, 1), "lone": x[0], "no_channel": x[:, 0], "two": x[:, :2],
        "seven": x[:, :1, :1].repeat(7, 1), "features": x[:, 0, 0], "none": x[:0], "single": np.float32(3.0),
        "labels": np.arange(6), "labels_out": np.arange(6) + 3, "labels_few": np.arange(3),
        "labels_float": np.linspace(0, 1, 6),
    }.items():  # fmt: skip
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "object.npy", np.array([{}, None], dtype=object))
    np.savez(folder / "several.npz", a=x, b=x)
    with h5py.File(folder / "several.h5", "w") as file:
        file["a"], file["b"] = x, x
    with h5py.File(folder / "foreign.h5", "w") as file:
        file["jacobian"] = np.zeros((2, 3, 4), np.float32)
    (folder / "truncated.npy").write_bytes((folder / "x.npy").read_bytes()[:-100])
    (folder / "truncated.h5").write_bytes((folder / "several.h5").read_bytes()[:-1000])
    (folder / "words.txt").write_text("some words\n")
    (folder / "labels.txt").write_text("cat\ndog\n")


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, inputs, configurations: good ones and bad ones."""
    folder = tmp_path_factory.mktemp("material")
    torch.manual_seed(0)
    _make_models(folder)
    _make_inputs(folder)
    (folder / "invalid.toml").write_text("model = model.pt\n")
    (folder / "unknown.toml").write_text('model = "model.pt"\ninputs = "x.npy"\nmethood = "vmap"\n')
    (folder / "wrong.toml").write_text('model = "model.pt"\ninputs = "x.npy"\nbatch_size = -1\nof = "odds"\n')
    return folder


@dataclass(frozen=True)
class Bad:
    """A call, run in the folder of materials, and what must come of it.

    Attributes:
        line: The command line; ``compute`` gets ``-o OUT`` in an empty folder.
        code: Exit code.
        words: Must be in stderr, whatever the case of the letters.
    """

    line: str
    code: int
    words: tuple[str, ...]


def bad(line: str, code: int, *words: str) -> Bad:
    return Bad(line, code, words)


MODELS = [
    bad("compute missing.pt x.npy", 3, "no file missing.pt", "check the path"),
    bad("compute empty.pt x.npy", 3, "empty.pt", "empty"),
    bad("compute pointer.pt x.npy", 3, "git lfs", "git lfs pull"),
    bad("compute page.pt x.npy", 3, "html", "download"),
    bad("compute zipped.pt x.npy", 3, "gzip"),
    bad("compute truncated.pt x.npy", 3, "truncated.pt", "damaged", "again"),
    bad("compute flipped.pt x.npy --arch arch.py:make", 3, "flipped.pt", "damaged", "checksum"),
    bad("compute words.txt x.npy", 3, "words.txt"),
    bad("compute . x.npy", 3, "folder"),
    bad("compute x.npy x.npy", 3, "x.npy", "npy"),
    bad("compute several.h5 x.npy", 3, "several.h5", "hdf5"),
    bad("compute pickled.pt x.npy", 3, "pickle", "--allow-pickle"),
    bad("compute odd.pt x.npy", 3, "--arch"),
    bad("compute state.pt x.npy", 3, "--arch"),
    bad("compute state.pt x.npy --arch resnet18", 3, "resnet18"),
    bad("compute state.pt x.npy --arch arch.py:makes", 3, "arch.py", "makes", "make"),
    bad("compute state.pt x.npy --arch arch.py:broken", 3, "no such luck"),
    bad("compute state.pt x.npy --arch arch.py:number", 3, "arch.py:number", "int"),
    bad("compute state.pt x.npy --arch syntax.py:make", 3, "syntax.py", "line 1"),
    bad("compute state.pt x.npy --arch missing.py:make", 3, "missing.py"),
    bad("compute state.pt x.npy --arch resnet19", 3, "resnet19", "resnet18"),
    bad("compute state.pt x.npy --arch arch.py:make --arch-arg width=5", 3, "5", "6"),
    bad("compute state.pt x.npy --arch arch.py:make --arch-arg depth=5", 2, "depth", "width=6"),
    bad("compute checkpoint.pt x.npy --arch arch.py:make --weights-key net", 3, "net", "state_dict"),
    bad("compute state.pt x.npy --arch arch.py:make --strip-prefix net.", 3, "net."),
    bad("compute model.pt x.npy --arch arch.py:make", 2, "--arch"),
    bad("compute torchvision:resnet19 x.npy", 3, "resnet19", "resnet18"),
    bad("compute mixing.pt x.npy", 3, "mixes samples", "depends on other samples"),
    bad("compute batch_statistics.pt x.npy", 3, "mixes samples", "batch"),
    bad("compute random.pt x.npy", 3, "random", "eval()"),
    bad("compute argmax.pt x.npy", 3, "int64", "whole numbers", "--select"),
    bad("compute rounded.pt x.npy", 3, "does not depend differentiably", "cast"),
    bad("compute total.pt x.npy", 3, "batch axis"),
    bad("compute pair.pt x.npy", 3, "--select", "0", "1"),
    bad("compute pair.pt x.npy --select 2", 3, "2"),
    bad("compute pair.pt x.npy --select logits", 3, "logits"),
    bad("compute model.pt x.npy --select 1", 3, "1"),
    bad("compute further.pt x.npy", 3, "--arg", "scale"),
    bad("compute model.pt x.npy --arg scale=3", 2, "no such argument"),
    bad("compute fixed.pt x.npy --method replicate", 3, "replicate", "4 only", "loop"),
]
INPUTS = [
    bad("compute model.pt missing.npy", 4, "missing.npy"),
    bad("compute model.pt empty.pt", 4, "empty.pt", "empty"),
    bad("compute model.pt words.txt", 4, "words.txt"),
    bad("compute model.pt model.pt", 4, "model.pt", "model"),
    bad("compute model.pt state.pt", 4, "state.pt", "model"),
    bad("compute model.pt u8.npy", 4, "uint8", "255"),
    bad("compute model.pt i64.npy", 4, "int64", "float32"),
    bad("compute model.pt complex.npy", 4, "complex64", "channels"),
    bad("compute model.pt nan.npy", 4, "nan", "sample 2"),
    bad("compute model.pt nhwc.npy", 4, "channels-last", "transpose(0, 3, 1, 2)"),
    bad("compute model.pt lone.npy", 4, "batch axis", "x[None]"),
    bad("compute grey.pt no_channel.npy", 4, "channel axis", "x[:, None]"),
    bad("compute model.pt two.npy", 4, "(2, 5, 4)", "3 channels"),
    bad("compute mlp.pt seven.npy", 4, "(7, 1, 4)"),
    bad("compute mlp.pt features.npy", 4, "(4,)", "5"),
    bad("compute model.pt object.npy", 4, "object"),
    bad("compute model.pt none.npy", 4, "none.npy", "0"),
    bad("compute model.pt single.npy", 4, "single.npy"),
    bad("compute model.pt truncated.npy", 4, "truncated.npy", "damaged"),
    bad("compute model.pt truncated.h5", 4, "truncated.h5", "damaged"),
    bad("compute model.pt several.npz", 4, "several", "a (6, 3, 5, 4)", "--inputs-key"),
    bad("compute model.pt several.h5", 4, "several", "--inputs-key"),
    bad("compute model.pt several.npz --inputs-key c", 4, "'c'", "a (6, 3, 5, 4)"),
    bad("compute model.pt x.npy --inputs-key c", 4, "'c'", "leave out"),
    bad("compute model.pt random:6xthree", 2, "random:6xthree", "random:64x3x224x224"),
    bad("compute model.pt x.npy --samples 5,6", 4, "no sample 6", "0 to 5"),
    bad("compute model.pt x.npy --samples 6:", 4, "chooses no sample"),
    bad("compute model.pt x.npy --samples first", 2, "first", "0:100"),
    bad("compute model.pt x.npy --samples 1,1", 2, "more than once"),
    bad("compute further.pt x.npy --arg scale=@missing.npy", 4, "missing.npy"),
    bad("compute further.pt x.npy --arg scale=@labels_few.npy", 4, "3 rows", "position 5"),
    bad("compute model.pt x.npy --classes label --labels labels_out.npy", 4, "label 7", "7 outputs"),
    bad("compute model.pt x.npy --classes label --labels labels_few.npy", 4, "3 rows", "position 5"),
    bad("compute model.pt x.npy --classes label --labels labels_float.npy", 4, "no labels", "whole number"),
    bad("compute model.pt x.npy --classes label --labels labels.txt", 4, "no labels", "whole number"),
    bad("compute model.pt x.npy --classes label --labels missing.npy", 4, "missing.npy"),
]
OPTIONS = [
    bad("compute", 2, "model", "inputs", "jacli compute model.pt inputs.npy"),
    bad("compute model.pt", 2, "inputs", "jacli compute model.pt inputs.npy"),
    bad("compute model.pt x.npy --methood vmap", 2, "--methood", "-h"),
    bad("compute model.pt x.npy --method vmop", 2, "--method", "vmop", "vmap"),
    bad("compute model.pt x.npy --dtype bfloat16", 2, "--dtype", "float64"),
    bad("compute model.pt x.npy --precision half", 2, "--precision half", "ieee, tf32, bf16"),
    bad("compute model.pt x.npy --precision tf32 --device cpu", 2, "--precision tf32", "ampere", "bf16"),
    bad("compute model.pt x.npy --precision bf16 --method vmap", 2, "--method loop, replicate", "leave"),
    bad(
        "compute model.pt x.npy --precision tf32 --device cpu --dtype float64 --method loop",
        2, "3 options", "goes with a gpu", "--dtype float32", "--method loop",
    ),
    bad("compute model.pt x.npy --device gpu", 2, "--device", "cuda:n"),
    bad("compute model.pt x.npy --device cuda:99", 2, "cuda:99", "jacli doctor"),
    bad("compute model.pt x.npy --batch-size 0", 2, "--batch-size", "at least 1"),
    bad("compute model.pt x.npy --chunk-size many", 2, "--chunk-size", "auto"),
    bad("compute model.pt x.npy --method loop --chunk-size 3", 2, "--chunk-size", "loop"),
    bad("compute fixed.pt x.npy --batch-size 3", 2, "--batch-size 3", "batches of 4"),
    bad("compute model.pt x.npy --singular-values some", 2, "--singular-values", "all, none"),
    bad("compute model.pt x.npy --log-every -1", 2, "--log-every", "above 0"),
    bad("compute model.pt x.npy --seed one", 2, "--seed", "whole number"),
    bad("compute model.pt x.npy --arg 3", 2, "--arg", "NAME=VALUE"),
    bad("compute model.pt x.npy --classes cat", 2, "--classes", "top:k"),
    bad("compute model.pt x.npy --classes 0,7", 2, "--classes 0,7", "0 to 6"),
    bad("compute model.pt x.npy --classes 1,1", 2, "--classes", "each once"),
    bad("compute model.pt x.npy --classes top:8", 2, "top:8", "7 outputs"),
    bad("compute model.pt x.npy --classes label", 2, "--labels"),
    bad("compute map.pt x.npy --of probs", 3, "--of probs", "(2, 3, 2)"),
    bad("compute model.pt x.npy --compress gzip --save none", 2, "--compress", "--save full"),
    bad("compute model.pt x.npy --save-dtype float16 --save none", 2, "--save-dtype", "--save full"),
    bad(
        "compute model.pt x.npy --dtype half --of odds --batch-size -3 --compress zip --classes label",
        2, "5 options", "--dtype half", "--of odds", "--batch-size -3", "--compress zip", "--labels",
    ),
    bad("compute --config missing.toml", 2, "missing.toml"),
    bad("compute --config invalid.toml", 2, "invalid.toml", "toml", "line 1"),
    bad("compute --config unknown.toml", 2, "methood", "method"),
    bad("compute --config wrong.toml --seed x", 2, "3 options", "--batch-size", "--of", "--seed"),
    bad("compute --config foreign.h5", 4, "foreign.h5", "not a result file"),
]  # fmt: skip
PLACES = [
    bad("compute model.pt x.npy -o {tmp}/existing.h5", 4, "existing.h5", "--overwrite"),
    bad("compute model.pt x.npy -o {tmp}/unfinished.h5", 4, "unfinished.h5.part", "remove"),
    bad("compute model.pt x.npy -o {tmp}/unfinished.h5 --overwrite", 4, "unfinished.h5.part"),
    bad("compute model.pt x.npy -o {tmp}/absent/out.h5", 4, "no folder"),
    bad("compute model.pt x.npy -o {tmp}/folder", 4, "is a folder"),
    bad("compute model.pt x.npy -o {tmp}/existing.h5 --dry-run", 4, "existing.h5", "--overwrite"),
    bad("compute model.pt x.npy -o {tmp}/existing.h5/out.h5", 4, "no folder"),
    bad("compute missing.pt missing.npy -o {tmp}/existing.h5", 4, "existing.h5"),
]
OTHERS = [
    bad("", 2, "usage", "compute", "summarize"),
    bad("comptue model.pt x.npy", 2, "comptue", "-h"),
    bad("summarize", 2, "files", "-h"),
    bad("summarize missing.h5", 4, "missing.h5", "does not exist"),
    bad("summarize x.npy", 4, "x.npy", "not an hdf5 file"),
    bad("summarize truncated.h5", 4, "truncated.h5", "damaged"),
    bad("summarize several.h5", 4, "no jacobian", "--dataset"),
    bad("summarize foreign.h5 --dataset gradient", 4, "gradient", "jacobian"),
    bad("summarize foreign.h5 --per-sample --sort norm", 2, "norm", "frobenius_norm"),
    bad("summarize foreign.h5 --per-sample --per-class", 2, "--per-sample", "--per-class", "one"),
    bad("summarize foreign.h5 --format latex", 2, "latex", "markdown"),
    bad("summarize foreign.h5 -o foreign.h5", 2, "read and written"),
    bad("summarize foreign.h5 -o {tmp}/existing.h5", 4, "existing.h5", "--overwrite"),
    bad("inspect missing.pt", 4, "missing.pt"),
    bad("inspect page.pt", 4, "html"),
    bad("inspect model.pt --arch resnet18", 2, "--arch", "--inputs"),
    bad("inspect mixing.pt --inputs x.npy", 3, "mixes samples"),
    bad("doctor {tmp}/absent", 4, "absent"),
    bad("doctor --fast", 2, "--fast", "-h"),
]
TABLE = [*MODELS, *INPUTS, *OPTIONS, *PLACES, *OTHERS]


def _contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


@pytest.fixture(scope="session")
def untouched(material: Path) -> dict[str, bytes | None]:
    return _contents(material)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder to write to, in which some names are taken."""
    (tmp_path / "existing.h5").write_bytes(b"somebody's results")
    (tmp_path / "unfinished.h5.part").write_bytes(b"somebody's run")
    (tmp_path / "folder").mkdir()
    return tmp_path


def _arguments(call: Bad, place: Path) -> list[str]:
    arguments = shlex.split(call.line.format(tmp=place))
    if arguments[:1] == ["compute"] and "-o" not in arguments:
        arguments += ["-o", str(place / "out.h5")]
    return arguments


def _check_message(err: str, words: tuple[str, ...]) -> None:
    assert "Traceback" not in err
    for word in words:
        assert word.lower() in err.lower(), f"{word!r} is not in:\n{err}"
    if not err.startswith(("jacli: ", "Usage: jacli [OPTIONS] COMMAND")):  # the help
        pytest.fail(f"stderr starts with something else:\n{err}")
    first, *more = [line for line in err.splitlines() if line.strip()]
    parts = [*first.removeprefix("jacli: ").split(": "), *more]  # "missing.npy: no such file" is what and why
    assert len(parts) >= 3, f"what, why and what to do:\n{err}"
    assert more and (err.startswith("Usage: ") or all(line.startswith("  ") for line in more))


@pytest.mark.parametrize("call", TABLE, ids=lambda call: call.line or "nothing")
def test_bad_call(
    call: Bad,
    jacli: Callable[..., object],
    material: Path,
    untouched: dict[str, bytes | None],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(material)
    before = _contents(place)
    ran = jacli(*_arguments(call, place))
    assert ran.code == call.code, ran.err
    _check_message(ran.err, call.words)
    assert _contents(place) == before
    assert _contents(material) == untouched


def test_the_table_is_long_enough() -> None:
    assert len({call.line for call in TABLE}) == len(TABLE) >= 45


@pytest.mark.parametrize(
    "call", [MODELS[5], INPUTS[9], OPTIONS[23], PLACES[0], OTHERS[1]], ids=lambda c: c.line
)
def test_bad_call_as_a_process(
    call: Bad, material: Path, untouched: dict[str, bytes | None], place: Path
) -> None:
    before = _contents(place)
    ran = subprocess.run(
        [sys.executable, "-m", "jacli", *_arguments(call, place)],
        cwd=material, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == call.code, ran.stderr
    assert ran.stdout == ""
    _check_message(ran.stderr, call.words)
    assert _contents(place) == before
    assert _contents(material) == untouched


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(jacli, material: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        ran = jacli("compute", material / "model.pt", material / "x.npy", "-o", tmp_path / "out.h5")
        left = list(tmp_path.iterdir())
    finally:
        tmp_path.chmod(0o755)
    assert ran.code == 4
    _check_message(ran.err, ("out.h5", "-o"))
    assert left == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk is mounted, which takes root and a system that allows it")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ("does not fit", "bytes", "--save none")),  # seen before any work
        (("--compress", "gzip"), ("disk is full", "run it again", "--save none")),  # seen by a write
    ],
    ids=["known before", "while writing"],
)
def test_full_disk(jacli, material: Path, small_disk: Path, options: tuple[str, ...], words) -> None:
    out = small_disk / "out.h5"
    ran = jacli("compute", material / "model.pt", "random:100x3x5x4", "-o", out, *options)
    assert ran.code == 4, ran.err
    _check_message(ran.err, words)
    assert list(small_disk.iterdir()) == []
