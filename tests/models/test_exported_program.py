from __future__ import annotations

import json

import pytest

from jacli.models.exported_program import problem_of_program


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
        "torch.ops.nobody.knows.default",
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
