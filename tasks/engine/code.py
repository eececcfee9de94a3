"""A digest of the project code that a step's result can depend on, for its cache key.

It covers

- of the step's own module: the definitions that the step's function uses, directly or through other definitions, and all top-level
  statements that do more than define names, such as ``torch.backends.cudnn.benchmark = False``;
- all modules of the project that this code imports, all that those import, and so on, each as a whole, and the packages they are in.

So a step is not affected by an edit of another step in the same module, nor by modules that only another step imports. Formatting,
comments, docstrings, and the texts of error messages and log lines are not covered, and neither are the modules in `WITHOUT_EFFECT`.
Imports are read from the source text: a module that is imported by a name computed at run time is not found.
"""

import ast
import functools
import hashlib
import importlib.util
from itertools import accumulate
from pathlib import Path

PROJECT = ("pul_core", "tasks")
# Modules that only decide where and how things are recorded, and settings, whose values enter the key with the inputs of the step.
WITHOUT_EFFECT = ("tasks.engine", "tasks.store.home", "pul_core.settings", "pul_core.errors")


@functools.cache
def code_digest(module: str, function: str) -> str:
    """Return the digest of the project code that a function can reach.

    Args:
        module: dotted name, e.g. ``tasks.training``.
        function: its name in the module.

    Returns:
        64 hexadecimal digits.
    """
    own = ast.Module(_used_statements(_parse(module), function), [])
    digest = hashlib.sha256(ast.unparse(own).encode())
    reached: dict[str, str] = {}
    pending = _imported_modules(own)
    while new := pending - reached.keys():
        pending = set()
        for name in new:
            reached[name], imported = _code_of(name, read_source(name))
            pending |= imported
    for name, text in sorted(reached.items()):
        digest.update(f"{name}\n{text}\n".encode())
    return digest.hexdigest()


def read_source(module: str) -> str:
    """Return the source text of a module."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return Path(spec.origin).read_text(encoding="utf-8")


@functools.cache
def _code_of(module: str, source: str) -> tuple[str, frozenset[str]]:
    """Return the normalised code of a module with this source text, and the modules that it imports; most steps reach the same ones."""
    tree = _normalise(module, source)
    return ast.unparse(tree), frozenset(_imported_modules(tree))


def _parse(module: str) -> ast.Module:
    return _normalise(module, read_source(module))


def _normalise(module: str, source: str) -> ast.Module:
    """Return the code of a module without docstrings and messages, with relative imports made absolute."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    tree = ast.parse(source)
    _WithoutTexts().visit(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            node.module = importlib.util.resolve_name("." * node.level + (node.module or ""), spec.parent)
            node.level = 0
    return tree


def _used_statements(module: ast.Module, function: str) -> list[ast.stmt]:
    """Return the top-level statements of a module that a function uses, in their order.

    These are the statements that define the function, those that define a name that occurs in them, and so on. A statement that defines no
    name always counts, and so do the names in it.
    """
    statements = [part for statement in module.body for part in _one_import_each(statement)]
    names, reached = set[str](), {function}
    while names != reached:
        names = reached
        used = [statement for statement in statements if not _defined_names(statement) or _defined_names(statement) & names]
        reached = {function, *(node.id for statement in used for node in ast.walk(statement) if isinstance(node, ast.Name))}
    return used


def _one_import_each(statement: ast.stmt) -> list[ast.stmt]:
    """Split an import of several names, because a function may use only some of them."""
    if isinstance(statement, ast.Import):
        return [ast.Import([alias]) for alias in statement.names]
    if isinstance(statement, ast.ImportFrom):
        return [ast.ImportFrom(statement.module, [alias], statement.level) for alias in statement.names]
    return [statement]


def _defined_names(statement: ast.stmt) -> set[str]:
    """Return the names that a definition, an import or an assignment binds.

    The set is empty for all other statements, assignments to attributes and items among them, and for ``from module import *``.
    """
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in statement.names} - {"*"}
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return set()
    targets = [node for node in ast.walk(statement) if isinstance(getattr(node, "ctx", None), ast.Store)]
    if any(isinstance(node, ast.Attribute | ast.Subscript) for node in targets):
        return set()
    return {node.id for node in targets if isinstance(node, ast.Name)}


def _imported_modules(code: ast.Module) -> set[str]:
    """Return the modules and packages of the project that some code imports at any level of nesting."""
    names = set[str]()
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}  # a module, or a definition in one
    with_packages = {part for name in names for part in accumulate(name.split("."), "{}.{}".format)}  # a.b.c: a, a.b and a.b.c
    return {name for name in with_packages if _is_relevant(name)}


def _is_relevant(name: str) -> bool:
    """Return whether a dotted name is a module of the project on whose code results depend."""
    if name.split(".")[0] not in PROJECT or any(f"{name}.".startswith(f"{prefix}.") for prefix in WITHOUT_EFFECT):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a definition in a module
        return False


class _WithoutTexts(ast.NodeTransformer):
    """Removes docstrings, and replaces the literals inside ``raise`` and logger calls."""

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Call) and _is_logging(node.func)):
            return _WithoutLiterals().visit(node)
        return self.generic_visit(node)


def _is_logging(function: ast.expr) -> bool:
    """Return whether a call is one of a logger's methods: ``step_logger().info``, ``self.logger.warning``."""
    return isinstance(function, ast.Attribute) and ast.unparse(function.value).removesuffix("()").endswith("logger")


class _WithoutLiterals(ast.NodeTransformer):
    def visit(self, node: ast.AST) -> ast.AST:
        return ast.Constant(None) if isinstance(node, ast.Constant | ast.JoinedStr) else self.generic_visit(node)
