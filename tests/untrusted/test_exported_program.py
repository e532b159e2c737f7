from __future__ import annotations

import json

import pytest

from jacli.untrusted.exported_program import examine_program


def problem_of_program(text: bytes) -> str | None:
    return examine_program(text).problem


def _program(**entries: object) -> bytes:
    return json.dumps({"graph": [entries]}).encode()


@pytest.mark.parametrize(
    "expression",
    [
        "2",
        "Symbol('s31', positive=True, integer=True)",
        "Add(Mul(Integer(2), Symbol('s0', integer=True)), Integer(-1))",
        "FloorDiv(Pow(Symbol('s0', integer=True), Integer(2)), Integer(3)) + 1",
        "Max(1, s0) ** 2",
        "TruncToInt(Mul(Float('1.7000000000000000', precision=53), ToFloat(Symbol('s0'))))",
        "FloatPow(ToFloat(s0), Float('-0.5', precision=53))",
    ],
)
def test_arithmetic_passes(expression: str) -> None:
    assert problem_of_program(_program(expr_str=expression)) is None


@pytest.mark.parametrize(
    "expression",
    [
        "exec('1')",
        "__import__('os')",
        "S('1')",
        "sympify('1')",
        "s0.func",
        "[x for x in (1,)]",
        "lambda: 1",
        "Symbol(f'{1}')",
        "Symbol('a b')",
        "floor(exp(1000000000000))*0+1",
        "Mod(exp(exp(exp(20))),7)",
        "log(s0)",
        f"sqrt({'9' * 4000})",
        f"Integer('{'9' * 400}')",
        "Float('1e999999999')",
        "10**10**10",
        "9**9**9**9",
        "2**1000",
        "LShift(1, 10**9)",
        "((((2**64)**64)**64)**64)",
        "(" * 200 + "1" + ")" * 200,
        "-" * 5000 + "1",
        "1 +",
        7,
    ],
)
def test_what_is_more_or_could_not_be_computed_is_refused(expression: object) -> None:
    assert "no arithmetic" in str(problem_of_program(_program(expr_str=expression)))


@pytest.mark.parametrize(
    "guard", ["L['x'].size()[0] >= 2", "Mod(L['x'].size()[0], 2) == 0", "L['x'].stride()[0] == 3 or True"]
)
def test_comparisons_of_sizes_pass_as_guards(guard: str) -> None:
    assert problem_of_program(_program(guards_code=[guard])) is None


@pytest.mark.parametrize(
    "guard",
    ["exec('1')", "L['x'].__class__", "L['x'].save('y')", "L['\"'] == 1", "open('x')", "L['x'].size()\n"],
)
def test_other_guards_are_refused(guard: str) -> None:
    assert "no comparison" in str(problem_of_program(_program(guards_code=["1 == 1", guard])))


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.add.Tensor",
        "torch.ops.aten._softmax.default",
        "torch.ops.higher_order.cond",
        "_operator.mul",
        "torch.sym_max",
        "math.ceil",
        "torch.ops.aten.add_.Tensor",
        "torch.ops.aten.add.of_another_torch",
    ],
)
def test_operators_pass(target: str) -> None:
    assert problem_of_program(_program(target=target, inputs=[], outputs=[])) is None


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.load",
        "torch.ops.load_library",
        "torch.ops.load_library.__call__",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.from_file.out",
        "torch.ops.aten.save.default",
        "torch.ops.debugprims.load_tensor.default",
        "torch.ops.image.write_file.default",
        "torch.ops._c10d_functional.broadcast.default",
        "torch.ops.nobody.knows.default",
        "torch.ops.aten.add.__init__",
        "math.factorial",
        "#extension.op",
        "torch.ops.aten.add.Tensor.__init__",
        "_operator.attrgetter",
        "builtins.exec",
        3,
    ],
)
def test_other_calls_are_refused(target: object) -> None:
    assert "no operator" in str(problem_of_program(_program(target=target, inputs=[], outputs=[])))


def test_a_target_that_is_no_nodes_is_a_name() -> None:
    assert problem_of_program(_program(target="layer.weight")) is None


@pytest.mark.parametrize("target", ["torch.ops.aten.from_file.default", "torch.load", "builtins.exec"])
def test_operators_that_are_arguments_are_judged_alike(target: str) -> None:
    """As of auto_functionalized, which calls its first argument."""
    assert "no operator" in str(problem_of_program(_program(as_operator=target)))
    assert problem_of_program(_program(as_operator="torch.ops.aten.add.Tensor")) is None
    assert "no operator" in str(problem_of_program(_program(target=target, outputs=[])))


def _spec(context: object) -> str:
    return json.dumps([1, {"type": "builtins.dict", "context": context, "children_spec": []}])


ENUM = {"__enum__": True, "fqn": "antigravity:Enum", "name": "A"}
FACTORY = {"default_factory_module": "os", "default_factory_name": "abort", "dict_context": []}


@pytest.mark.parametrize("context", [json.dumps([ENUM]), json.dumps(FACTORY), FACTORY, [[ENUM]]])
def test_structures_of_arguments_import_nothing(context: object) -> None:
    """Torch imports what they name as it reads them."""
    assert "imports" in str(problem_of_program(_program(in_spec=_spec(context))))
    hidden = _spec(context).replace("_", "\\u005f")
    assert "imports" in str(problem_of_program(_program(out_spec=hidden)))


def test_structures_of_arguments_of_plain_containers_pass() -> None:
    factory = FACTORY | {"default_factory_module": "builtins", "default_factory_name": "list"}
    for context in (None, "[]", '["a", "b"]', "[no JSON", json.dumps(factory)):
        assert problem_of_program(_program(in_spec=_spec(context))) is None


@pytest.mark.parametrize(
    "deep", [b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000]
)
def test_json_in_depth_is_refused(deep: bytes) -> None:
    inside = json.dumps({"in_spec": deep.decode()}).encode()
    for text in (deep, inside):
        with pytest.raises(ValueError, match="nested too deeply"):
            examine_program(text)


def test_which_sizes_are_evaluated_in_a_process_of_their_own() -> None:
    for quick in ("2", "Symbol('s0', positive=True)", "Mul(Integer(3), Add(Symbol('s0'), Integer(-1)))"):
        assert examine_program(_program(expr_str=quick)).quick
    for slow in ("Max(1, s0)", "s0 * " * 300 + "1", "FloorDiv(s0, 2)"):
        assert not examine_program(_program(expr_str=slow)).quick
    assert not examine_program(_program(guards_code=["L['x'].size()[0] >= 2"])).quick
