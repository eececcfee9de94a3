"""A digest of the project code that a step's result can depend on, for its cache key.

Of the step's own module the definitions count that the step's function uses, directly or through others. Of the modules that these import,
and of those that they import in turn, all code counts. Comments, docstrings and the texts of error messages and log lines never count, and
neither do the modules in `WITHOUT_EFFECT`.
"""

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

PROJECT = ("pul_core", "tasks")
# Modules that only decide where and how things are recorded, and definitions whose values enter a key as inputs of the step.
WITHOUT_EFFECT = ("tasks.engine", "tasks.store.home", "pul_core.settings", "pul_core.errors")


@functools.cache
def code_digest(module: str, function: str) -> str:
    """Return the digest of the code that a function can reach.

    Args:
        module: dotted name, e.g. ``tasks.training``.
        function: its name in the module.

    Returns:
        64 hexadecimal digits.
    """
    definitions = _used_definitions(ast.parse(read_source(module)), function)
    digest = hashlib.sha256(_effective_source(ast.Module(definitions, [])).encode())
    for name in sorted(reached_modules(module, function)):
        digest.update(f"{name}\n{_effective_source(ast.parse(read_source(name)))}\n".encode())
    return digest.hexdigest()


def reached_modules(module: str, function: str) -> set[str]:
    """Return the names of the project modules that a function uses, directly or through others, without its own."""
    reached = set[str]()
    pending = list(_imported_modules(_used_definitions(ast.parse(read_source(module)), function)))
    while pending:
        name = pending.pop()
        if name in reached or any(f"{name}.".startswith(f"{prefix}.") for prefix in WITHOUT_EFFECT):
            continue
        reached.add(name)
        pending += _imported_modules([ast.parse(read_source(name))])
    return reached


def read_source(module: str) -> str:
    """Return the source text of a module."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return Path(spec.origin).read_text(encoding="utf-8")


def _used_definitions(module: ast.Module, function: str) -> list[ast.stmt]:
    """Return the statements of a module that a function uses: its own definition, and those of the names in it, again and again."""
    defining: dict[str, list[ast.stmt]] = {}
    statements = [part for statement in module.body for part in _one_name_each(statement)]
    for statement in statements:
        for name in _defined_names(statement):
            defining.setdefault(name, []).append(statement)
    used: list[ast.stmt] = []
    pending = [function]
    while pending:
        for statement in defining.pop(pending.pop(), []):
            if statement not in used:
                used.append(statement)
                pending += [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
    return [statement for statement in statements if statement in used]


def _one_name_each(statement: ast.stmt) -> list[ast.stmt]:
    """Split an import of several names."""
    if isinstance(statement, ast.Import):
        return [ast.Import([alias]) for alias in statement.names]
    if isinstance(statement, ast.ImportFrom):
        return [ast.ImportFrom(statement.module, [alias], statement.level) for alias in statement.names]
    return [statement]


def _defined_names(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from ((alias.asname or alias.name).split(".")[0] for alias in statement.names)
    else:  # an assignment, or something that assigns in between
        yield from (node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))


def _imported_modules(code: list[ast.Module] | list[ast.stmt]) -> Iterator[str]:
    """Yield the names of the project modules that are imported anywhere in some code."""
    for node in (node for part in code for node in ast.walk(part)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]  # `from package import module`
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in PROJECT and _is_module(name))


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module, not a package
        return False


def _effective_source(code: ast.Module) -> str:
    return ast.unparse(_WithoutTexts().visit(code))


class _WithoutTexts(ast.NodeTransformer):
    """Removes docstrings, and replaces the literals inside ``raise`` and logger calls."""

    def visit(self, node: ast.AST) -> ast.AST:
        """Treat a node by its kind, then its children."""
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.Expr(ast.Constant(None))
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and _is_logging(node.func)):
            return _WithoutLiterals().visit(node)  # type: ignore[no-any-return]
        return self.generic_visit(node)


def _is_logging(function: ast.expr) -> bool:
    """Return whether a call is one of a logger's methods: ``step_logger().info``, ``self.logger.warning``."""
    return isinstance(function, ast.Attribute) and ast.unparse(function.value).removesuffix("()").endswith("logger")


class _WithoutLiterals(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant(None)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.Constant(None)
