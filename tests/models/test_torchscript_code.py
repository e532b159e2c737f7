"""What a TorchScript archive may do: compute, and nothing else, before it is loaded and after."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from jacli.errors import ModelError
from jacli.models import describe_model, load_model
from jacli.untrusted.operators import computes, is_operator
from jacli.untrusted.torchscript_graph import problem_of_graphs
from jacli.untrusted.torchscript_source import problem_of_classes, problem_of_sources
from tests.linear_program.operators import OPERATORS, points, seeded

CALL = "from_file({0!r}, True, 16, dtype=0)"


def rewritten(path: Path, edit: Callable[[str, str], str], **members: bytes) -> None:
    """Edit every source of an archive; put further members into its root folder."""
    with zipfile.ZipFile(path) as archive:
        # Tables of source ranges would say where the old text was.
        content = {n: archive.read(n) for n in archive.namelist() if not n.endswith(".debug_pkl")}
    root = next(iter(content)).partition("/")[0]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, edit(name, data.decode()).encode() if name.endswith(".py") else data)
        for name, data in members.items():
            archive.writestr(f"{root}/{name}", data)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 + 1


class Restored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.w, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        self.w, self.training = state

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that exists, of which no byte may change."""
    path = tmp_path / "canary"
    path.write_bytes(bytes(64))
    return path


@pytest.fixture
def forward(tmp_path: Path) -> Callable[..., Path]:
    """An archive whose forward is these lines; ``{call}`` is a call that maps the canary."""

    def forward(*lines: str, before: str = "") -> Path:
        path = tmp_path / "made.pt"
        torch.jit.script(Twice()).save(str(path))
        body = "".join(f"    {line}\n" for line in (*lines, "return torch.mul(x, 2)"))
        head = "  def forward(self: SELF,\n    x: Tensor) -> Tensor:\n"

        def edit(_: str, source: str) -> str:
            at = source.index("  def forward")
            name = source[source.index("self: ") + 6 :].partition(",")[0]
            return (source[:at] + before + head).replace("SELF", name) + body

        rewritten(path, edit)
        return path

    return forward


SPELLINGS = {
    "plain": ["y = torch.{call}"],
    "in parentheses": ["y = (torch.from_file)({args})"],
    "the other registry": ["y = ops.aten.{call}"],
    "the other registry in parentheses": ["y = ((ops.aten).from_file)({args})"],
    "alias of torch": ["t = torch", "y = t.{call}"],
    "alias of ops": ["t = ops.aten", "y = t.{call}"],
    "alias of the operator": ["f = torch.from_file", "y = f({args})"],
    "two steps of aliases": ["t = torch", "f = t.from_file", "y = f({args})"],
    "by getattr": ['y = getattr(torch, "from_file")({args})'],
    "by getattr and alias": ['f = getattr(torch, "from_file")', "y = f({args})"],
    "across lines": ["y = torch.\\\nfrom_file({args})"],
    "through _C": ["y = torch._C.{call}"],
    "as a method": ["y = torch.mul(x, 1)", '_0 = (y).save("{path}")'],
    "as a method of text": ['_0 = ("{path}").from_file(True, 16, dtype=0)'],
    "saved": ['_0 = torch.save(x, "{path}")'],
    "saved through prim": ['_0 = ops.prim.save(x, "{path}")'],
    "given to fork": ["f = fork(torch.from_file, {args})", "y = torch.wait(f)"],
    "a method given to fork": ['f = fork((x).save, "{path}")'],
    "in a local function": ["def g():", "  return torch.{call}", "y = g()"],
    "chosen": ["y = (torch.from_file if True else torch.from_file)({args})"],
    "in a list": ["y = [torch.from_file][0]({args})"],
    "as an argument": ["y = torch.add(x, torch.sum(torch.{call}))"],
    "shadowed": ["abs = torch.from_file", "y = abs({args})"],
    "after a return": ["if False:", "  return x", "y = torch.{call}"],
    "behind a comment that ends for Python alone": ["z = 1 #\r", "y = torch.{call}"],
    "in a default": ["def g(z=torch.{call}):", "  return z", "y = g()"],
    "another process": ['y = rpc_sync("w", torch.add, (x, x))'],
    "another process's operator": ["y = ops.c10d.barrier(x, [0], 0)"],
    "a print of another library": ['y = ops.image.write_file("{path}", x)'],
    "a class of another library": ["y = __torch__.torch.classes.dist_rpc.WorkerInfo()"],
    "a name that nobody defines": ["y = __torch__.elsewhere.f(x)"],
    "a type comment": ["y = x # type: Tensor"],
    "a prefixed string": ['y = r"a"'],
    "an import": ["import os"],
}


@pytest.mark.parametrize("how", SPELLINGS)
def test_no_spelling_reaches_a_file(canary: Path, forward: Callable[..., Path], how: str) -> None:
    args = f'"{canary}", True, 16, dtype=0'
    replaced = [("{call}", f"from_file({args})"), ("{args}", args), ("{path}", str(canary))]
    lines = SPELLINGS[how]
    for old, new in replaced:
        lines = [line.replace(old, new) for line in lines]
    path = forward(*lines)
    for ask in (load_model, describe_model):
        with pytest.raises(ModelError, match="does more than compute"):
            ask(str(path))
    assert canary.read_bytes() == bytes(64)


@pytest.mark.parametrize("name", ["save", "from_file"])
def test_a_method_of_the_archive_lends_its_name_to_no_operator(
    canary: Path, forward: Callable[..., Path], name: str
) -> None:
    own = f"  def {name}(self: SELF, path: str) -> NoneType:\n    return None\n"
    path = forward(f'_0 = (x).{name}("{canary}")', before=own)
    with pytest.raises(ModelError, match=f"calls .*{name}"):
        load_model(str(path))


SOURCES = {
    "in a default of a class": "class A(Module):\n  x : Final[int] = torch.save(1, 'f')\n",
    "in a base class": "class A(torch.save(1, 'f')):\n  x : int\n",
    "in a decorator": "@torch.save(1, 'f')\ndef f():\n  return 1\n",
    "at the top": "y = torch.save(1, 'f')\n",
    "in an annotation": "def f(x: torch.save(1, 'f')) -> int:\n  return 1\n",
    "in a loop's head": "def f(x):\n  for i in torch.save(1, 'f'):\n    pass\n",
    "in a comprehension": "def f(x):\n  return [g(i) for g in [torch.save] for i in x]\n",
    "classes defined over those in C++": "class classes:\n  def f(self):\n    "
    "return __torch__.torch.classes.image.Reader()\n",
    "torch bound anew": "def f(torch):\n  return torch.add(1, 2)\n",
    "a value that counts as a function": (
        "def g(x):\n  return x\ndef f(x):\n  v = x.set_\n  v.q = __torch__.torch.g\n  return v(x)\n"
    ),
    "a part of a value that counts as a function": (
        "def g(x):\n  return x\ndef f(x, q):\n  x.q = __torch__.torch.g\n  return q(x)\n"
    ),
    "ops bound anew": "def f(x):\n  ops = x\n  return ops.aten.add(1, 2)\n",
}


@pytest.mark.parametrize("how", SOURCES)
def test_every_part_of_a_source_is_judged(how: str) -> None:
    assert problem_of_sources({"__torch__.torch": SOURCES[how]}) is not None


@pytest.mark.parametrize(
    "source", ["def f(:", "x = 'open\n", f"x = {'a.' * 100_000}b", f"x = {'1+' * 100_000}1"]
)
def test_a_source_that_cannot_be_parsed_is_damaged(source: str) -> None:
    with pytest.raises(ValueError, match="its code"):
        problem_of_sources({"__torch__": source})


def test_names_that_stand_for_functions_of_the_archive_may_be_called() -> None:
    source = (
        "def g(x):\n  return x\n"
        "def f(x):\n  _0 = __torch__.g\n  def h():\n    return _0(x)\n  t = fork(h)\n  u = fork(_0, x)\n"
        '  s = "it\'s r\'f\' # type: no comment"\n  return (getattr(x, "0")).append(_0(torch.wait(t)))\n'
    )
    assert problem_of_sources({"__torch__": source}) is None
    twice = source.replace("  def h", "  _0 = x\n  def h")
    assert "calls _0" in str(problem_of_sources({"__torch__": twice}))


def test_what_runs_as_the_archive_is_read_is_judged_before(canary: Path, tmp_path: Path) -> None:
    path = tmp_path / "restored.pt"
    torch.jit.script(Restored()).save(str(path))
    assert load_model(str(path)).module.w.shape == (3,)

    def edit(_: str, source: str) -> str:
        at = source.index("-> NoneType:\n", source.index("__setstate__")) + len("-> NoneType:\n")
        return source[:at] + f'    _9 = (torch.save)((state)[0], "{canary}")\n' + source[at:]

    rewritten(path, edit)
    for ask in (load_model, describe_model):
        with pytest.raises(ModelError, match=r"calls torch\.save"):
            ask(str(path))
    assert canary.read_bytes() == bytes(64)


@pytest.mark.parametrize("call", ["ops.aten.warn({text}, 2)", "print({text})"])
def test_what_an_archive_prints_as_it_is_read_is_escaped(
    call: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Warnings are written by C++ to descriptor 2, past Python's streams."""
    path = tmp_path / "restored.pt"
    torch.jit.script(Restored()).save(str(path))
    text = r"'\033[2J gone\nnext: rm -rf'"

    def edit(_: str, source: str) -> str:
        at = source.index("-> NoneType:\n", source.index("__setstate__")) + len("-> NoneType:\n")
        return source[:at] + f"    {call.format(text=text)}\n" + source[at:]

    rewritten(path, edit)
    assert load_model(str(path)).module.w.shape == (3,)
    out, err = capfd.readouterr()
    assert out == "" and "gone" in err
    if "warn" in call:  # what Python prints is escaped by the command's own streams
        assert "\x1b" not in err and r"\x1b[2J gone" in err
        assert all(line.startswith("restored.pt says: ") for line in err.splitlines())


@pytest.mark.parametrize("member", ["CODE/__torch__/More.PY", "code/__torch__/more.py", "extra/more.py"])
def test_sources_that_nothing_names_are_judged_too(forward: Callable[..., Path], member: str) -> None:
    """Torch's reader ignores case, and looks a class up where its name says."""
    path = forward()
    rewritten(path, lambda _, source: source, **{member: b"def f():\n  return torch.save(1, 'f')\n"})
    with pytest.raises(ModelError, match=r"calls torch\.save"):
        load_model(str(path))


@pytest.mark.parametrize("member", ["model.json", "Model.JSON"])
def test_a_second_program_in_the_old_layout_is_refused(forward: Callable[..., Path], member: str) -> None:
    """Torch reads a model.json first, and sources of any name that it gives."""
    path = forward()
    rewritten(path, lambda _, source: source, **{member: b"{}"})
    with pytest.raises(ModelError, match="two programs"):
        load_model(str(path))


def test_objects_in_cpp_are_packed_weights_only() -> None:
    packed = "__torch__.torch.classes.quantized.LinearPackedParamsBase"
    assert problem_of_classes(["__torch__.M", packed]) is None
    for other in (
        "__torch__.torch.classes.cuda.Stream",
        f"{packed}.x",
        "__torch__.torch.classes.image.Video",
    ):
        assert other in str(problem_of_classes([packed, other]))


def compiled(module: nn.Module, path: Path) -> list[Any]:
    """Every function that torch compiles from the module's archive."""
    torch.jit.script(module).save(str(path))
    unit = torch._C.CompilationUnit()
    torch._C.import_ir_module(unit, str(path), torch.device("cpu"), {}, False)
    return unit.get_functions()


class Nested(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            if bool(x.sum() > 0):
                torch.save(x, "f")
        return x


def forked(x: Tensor) -> Tensor:
    return x + torch.from_file("f", True, 4)


class Forked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.jit.wait(torch.jit.fork(forked, x))


@pytest.mark.parametrize(("module", "operator"), [(Nested(), "save"), (Forked(), "from_file")])
def test_compiled_graphs_are_judged_in_every_block(module: nn.Module, operator: str, tmp_path: Path) -> None:
    assert f"aten::{operator}" in str(problem_of_graphs(compiled(module, tmp_path / "a.pt")))


def test_compiled_graphs_that_compute(tmp_path: Path) -> None:
    assert problem_of_graphs(compiled(nn.LSTM(2, 3), tmp_path / "a.pt")) is None


@pytest.mark.parametrize("name", ["save", "from_file", "to_here"])
def test_operators_beyond_computing_are_known_and_not_listed(name: str) -> None:
    assert is_operator("aten", name) and not computes("aten", name)
    assert not computes("aten", f"{name}_")


@pytest.mark.parametrize(
    "name", ["_reshape_alias", "_sparse_coo_tensor_with_dims_and_tensors", "_cummax_helper"]
)
def test_operators_that_believe_any_size_are_not_listed(name: str) -> None:
    assert is_operator("aten", name) and not computes("aten", name)


def test_the_list_of_operators() -> None:
    assert computes("aten", "add_") and computes("aten", "__and__") and computes("prim", "Loop")
    assert computes("quantized", "linear_relu") and not computes("quantized", "nothing")
    assert not computes("debugprims", "load_tensor") and not is_operator("aten", "nothing_of_the_kind")


def saved_and_read(module: Any, path: Path) -> None:
    module.save(str(path))
    assert load_model(str(path)).format == "torchscript"


# `torch._check` on a traced size is beyond torch.jit.trace.
@pytest.mark.parametrize("name", sorted(set(OPERATORS) - {"max pool and back"}))
def test_every_operator_of_the_contract_is_read(tmp_path: Path, name: str) -> None:
    operator = OPERATORS[name]
    seeded(name)
    module = operator.make().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, and of slow kernels
        traced = torch.jit.trace(module, points(operator, 2).float(), check_trace=False)
    saved_and_read(traced, tmp_path / "traced.pt")


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


class Language(nn.Module):
    """The statements and values of the language, printed in their many forms."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.ReLU()])
        self.words = ["é", 'it\'s "quoted" # type: x\n\\']
        self.act = nn.functional.gelu

    def forward(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        counts: dict[str, int] = {}
        for word in self.words:
            counts[word.upper()] = len(word)
        for layer in self.layers:
            x = layer(x)
        while bool(x.sum() < 0):
            x = x + 1
        with torch.no_grad():
            offset = x.clone()
        if y is not None:
            x = x + y
        assert x.dim() == 2, "two axes, not {}".format(x.dim())  # noqa: UP032
        pair = Pair(x, self.act(x))
        later = torch.jit.fork(nn.functional.relu, pair.right)
        items = [offset[:, i] for i in range(2)]
        items.append(x[:, -1])
        print("shape", list(x.shape), counts.get("a", 3))
        return {"sum": torch.jit.wait(later) + pair.left, "stacked": torch.stack(items)}


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def quantised() -> nn.Module:
    """Convolutions with packed weights, whose archive unpacks them."""
    module = torch.ao.quantization.QuantWrapper(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())).eval()
    module.qconfig = torch.ao.quantization.default_qconfig
    prepared = torch.ao.quantization.prepare(module)
    prepared(torch.randn(2, 3, 5, 5))
    return torch.ao.quantization.convert(prepared)


PROGRAMS: dict[str, Callable[[], nn.Module]] = {
    "language": Language,
    "lstm": lambda: Recurrent(nn.LSTM(3, 4, num_layers=2, bidirectional=True)),
    "gru": lambda: Recurrent(nn.GRU(3, 4, batch_first=True)),
    "transformer": lambda: nn.TransformerEncoderLayer(8, 2, batch_first=True),
    "quantised": lambda: torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU()), {nn.Linear}, dtype=torch.qint8
    ),
    "quantised lstm": lambda: torch.ao.quantization.quantize_dynamic(
        Recurrent(nn.LSTM(3, 4)), {nn.LSTM}, dtype=torch.qint8
    ),
    "quantised convolutions": quantised,
    "pooled": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Hardswish()),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch.ao.quantization
@pytest.mark.parametrize("form", ["script", "freeze", "optimize_for_inference"])
@pytest.mark.parametrize("kind", PROGRAMS)
def test_programs_of_every_kind_are_read(tmp_path: Path, kind: str, form: str) -> None:
    module = torch.jit.script(PROGRAMS[kind]().eval())
    if form != "script":
        module = getattr(torch.jit, form)(module)
    saved_and_read(module, tmp_path / "program.pt")
