"""The source in a TorchScript archive, judged before torch compiles it: does it only compute?

torch prints TorchScript as a subset of Python, and reading an archive already runs a part of it
(``__setstate__``).  Here every source is parsed, nothing is run.  Each call must resolve to an operator that
computes (`jacli.untrusted.operators`), to a function, class or method of the archive itself, or to a builtin
that computes.  ``torch`` and ``ops`` are no values: they cannot be given another name, or be passed on.

torch's own lexer reads the same text.  What it reads differently from Python is refused: carriage returns,
which end a comment for Python alone; prefixed strings; type comments.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from jacli.untrusted.operators import computes, is_operator

CUSTOM_CLASSES = re.compile(
    r"__torch__\.torch\.classes\."
    r"(quantized\.(Linear|Conv2d|Conv3d|Embedding)PackedParamsBase|rnn\.CellParamsBase|"
    r"sparse\.LinearPackedParamsBase|mkldnn\.ConvOpContext|"
    r"xnnpack\.(Linear|Conv2d|TransposeConv2d)OpContext)"
)
"""Classes in C++ that hold packed weights; others open files, devices and connections."""

_BUILTINS = frozenset(
    [
        "abs",
        "all",
        "annotate",
        "any",
        "awaitable",
        "bin",
        "bool",
        "chr",
        "complex",
        "dict",
        "divmod",
        "enumerate",
        "float",
        "fork",
        "getattr",
        "hasattr",
        "hash",
        "hex",
        "id",
        "int",
        "isinstance",
        "len",
        "list",
        "max",
        "min",
        "oct",
        "ord",
        "pow",
        "print",
        "range",
        "rangelist",
        "reversed",
        "round",
        "slice",
        "sorted",
        "str",
        "sum",
        "tuple",
        "type",
        "unchecked_cast",
        "uninitialized",
        "zip",
        "Exception",
        "AssertionError",
    ]
)
_PACKED_WEIGHTS_METHODS = frozenset(
    [
        "bias",
        "bit_rate",
        "dilation",
        "groups",
        "output_padding",
        "padding",
        "set_bias",
        "stride",
        "transpose",
        "unpack",
        "version",
    ]
)
_TAKE_FUNCTIONS = frozenset(("fork", "awaitable"))
_NAMESPACES = frozenset(("torch", "ops", "__torch__"))

_BRACKETS = re.compile(r"[()\[\]{}]")
_UNARY = re.compile(r"(?:(?:[-~+]|\bnot\b)\s*){200}")
_NESTING = 200
_PREFIX = re.compile(r"(?<![A-Za-z0-9_])(?:[rR][bBfF]?|[bBfF][rR]?|[uU])['\"]")
_TYPE_COMMENT = re.compile(r"#\s*type\s*:")
_FOREIGN = re.compile(r"[^\n\x20-\x7e]")


@dataclass
class _Program:
    """Definitions of the archive: qualified names of functions and classes, and names of methods."""

    names: set[str] = field(default_factory=set)
    methods: set[str] = field(default_factory=set)

    def holds(self, chain: list[str]) -> bool:
        """Whether ``__torch__.a.B`` or the start of it, as in ``__torch__.a.B.method``, is defined here."""
        if chain[:3] == ["__torch__", "torch", "classes"]:
            return CUSTOM_CLASSES.fullmatch(".".join(chain)) is not None
        return any(".".join(chain[:n]) in self.names for n in range(len(chain), 1, -1))


def problem_of_classes(named: Iterable[str]) -> str | None:
    """A class in C++ that an archive's pickles make and that does more than hold weights, as a sentence.

    >>> problem_of_classes(["__torch__.Net"]) is None, problem_of_classes(["__torch__.torch.classes.Shell"])
    (True, 'Its pickle makes an object of __torch__.torch.classes.Shell, which is not known to compute
        only.')
    """
    for name in sorted(named):
        if name.startswith("__torch__.torch.classes.") and not CUSTOM_CLASSES.fullmatch(name):
            return f"Its pickle makes an object of {name}, which is not known to compute only."
    return None


def problem_of_sources(sources: Mapping[str, str]) -> str | None:
    r"""The first construct in an archive's sources that does more than compute, as a sentence; or None.

    >>> source = "def forward(x: Tensor) -> Tensor:\n  return torch.save(x)"
    >>> problem_of_sources({"__torch__": source})
    'Its code calls torch.save, which is not known to compute only.'

    Args:
        sources: Qualifier (``__torch__.torch.nn``) to source.

    Raises:
        ValueError: A source cannot be parsed, or is nested too deeply.
    """
    program, trees = _Program(), []
    for qualifier, source in sources.items():
        problem = _problem_of_text(source)
        if problem is not None:
            return problem
        tree = _parsed(source)
        trees.append(tree)
        for statement in tree.body:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef):
                program.names.add(f"{qualifier}.{statement.name}")
            if isinstance(statement, ast.ClassDef):
                program.methods |= {s.name for s in statement.body if isinstance(s, ast.FunctionDef)}
    for tree in trees:
        for statement in tree.body:
            for part in (
                ast.iter_child_nodes(statement) if isinstance(statement, ast.ClassDef) else [statement]
            ):
                problem = next(_Judge(program, part).problems(), None)
                if problem is not None:
                    return problem
    return None


def _problem_of_text(source: str) -> str | None:
    """Text that torch's lexer could read otherwise than Python's."""
    match = _FOREIGN.search(source)
    if match:
        return f"Its code holds the character {match[0]!r}, which torch never writes there."
    if _PREFIX.search(source) or _TYPE_COMMENT.search(source):
        try:
            for token in tokenize.generate_tokens(io.StringIO(source).readline):
                if token.type == tokenize.STRING and token.string[0] not in "'\"":
                    return f"Its code has a string with a prefix: {token.string[:40]}."
                if token.type == tokenize.COMMENT and _TYPE_COMMENT.search(token.string):
                    return f"Its code has a type comment: {token.string[:40]}."
        except (tokenize.TokenError, SyntaxError) as error:
            raise ValueError(f"its code is incomplete: {error}") from error
    return None


def _parsed(source: str) -> ast.Module:
    depth = deepest = 0
    for bracket in _BRACKETS.findall(source):
        depth += 1 if bracket in "([{" else -1
        deepest = max(deepest, depth)
    indent = max((len(line) - len(line.lstrip(" ")) for line in source.splitlines()), default=0)
    too_deep = f"its code is nested more than {_NESTING} levels deep"
    if max(deepest, indent // 2) > _NESTING or _UNARY.search(source):
        raise ValueError(too_deep)
    try:
        return ast.parse(source)
    except (RecursionError, MemoryError) as error:
        raise ValueError(too_deep) from error
    except SyntaxError as error:
        raise ValueError(f"its code cannot be parsed: {error}") from error


class _Judge:
    """One function, method or statement of an archive's source, with the names that it binds."""

    def __init__(self, program: _Program, tree: ast.AST) -> None:
        self._program = program
        self._tree = tree
        self._bound: Counter[str] = Counter()
        functions: Counter[str] = Counter()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node is not tree:
                self._bound[node.name] += 1
                functions[node.name] += 1
            elif isinstance(node, ast.arg):
                self._bound[node.arg] += 1
            elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                self._bound[node.id] += 1
            elif isinstance(node, ast.Assign) and len(node.targets) == 1 and self._is_own(node.value):
                target = node.targets[0]  # of ``v.q = __torch__.f``, v is no function
                functions.update([target.id] if isinstance(target, ast.Name) else [])
        # Names that stand for nothing but functions: their own, and others of the archive.
        self._functions = {name for name, count in functions.items() if count == self._bound[name]}

    def problems(self) -> Iterator[str]:
        """Everything that does more than compute, as sentences."""
        bad = sorted((_NAMESPACES | {"CONSTANTS"}) & set(self._bound))
        if bad:
            yield f"Its code gives another meaning to {bad[0]}."
        rest = [self._tree]
        while rest:
            node = rest.pop()
            parts: list[ast.AST] = list(ast.iter_child_nodes(node))
            if isinstance(node, ast.Call):
                if not self._computes(node):
                    yield f"Its code calls {_shown(node.func)}, which is not known to compute only."
                parts = [*node.args, *node.keywords]
                if isinstance(node.func, ast.Attribute) and not _names_operator(node.func):
                    parts.append(node.func.value)
            elif isinstance(node, ast.Attribute | ast.Name) and _names_operator(node):
                parts = []
                if not self._is_own(node):
                    yield f"Its code takes {_shown(node)} as a value."
            elif isinstance(node, ast.Import | ast.ImportFrom):
                yield f"Its code imports: {_shown(node)}."
            rest.extend(parts)

    def _computes(self, call: ast.Call) -> bool:
        function = call.func
        if isinstance(function, ast.Name):
            name = function.id
            if name in self._functions:
                return True
            if name in self._bound or name not in _BUILTINS:
                return False
            return name not in _TAKE_FUNCTIONS or all(map(self._is_function, call.args[:1]))
        if not isinstance(function, ast.Attribute):
            return False
        match _chain(function):
            case ["torch", name]:
                return computes("aten", name)
            case ["ops", namespace, name]:
                return computes(namespace, name)
            case [root, *_] if root in _NAMESPACES:
                return self._is_own(function)
        return self._is_method(function.attr)

    def _is_method(self, name: str) -> bool:
        """Of a tensor, list, dict or text, whose methods are operators; of packed weights; or of the archive.

        The value's type is not known here: a name that is also an operator's must be on the list of those.
        """
        if computes("aten", name) or computes("prim", name):
            return True
        operator = is_operator("aten", name) or is_operator("prim", name)
        return name in self._program.methods | _PACKED_WEIGHTS_METHODS and not operator

    def _is_function(self, node: ast.AST) -> bool:
        return self._is_own(node) or (isinstance(node, ast.Name) and node.id in self._functions)

    def _is_own(self, node: ast.AST) -> bool:
        """Whether it names a function or class of the archive."""
        chain = _chain(node)
        return chain[:1] == ["__torch__"] and self._program.holds(chain)


def _chain(node: ast.AST) -> list[str]:
    """``a.b.c`` as ``["a", "b", "c"]``; empty where it is something else."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else []


def _names_operator(node: ast.AST) -> bool:
    """Whether it begins with ``torch``, ``ops`` or ``__torch__``."""
    return bool(_NAMESPACES & set(_chain(node)[:1]))


def _shown(node: ast.AST) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 60 else f"{text[:57]}..."
