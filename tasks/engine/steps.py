"""What makes a function a step: a Prefect task whose cache key is everything its result follows from.

The key is made of the digests of the input artifacts, the resolved parameters, the code of this project that the step reaches (comments and
docstrings do not count) and the versions of the libraries that compute. So Prefect's cache does the resuming, and an edited core is never
served an old result.
"""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.results import get_result_store
from pydantic import BaseModel

from tasks.engine.links import arguments_of, call_linked, task_of
from tasks.engine.progress import step_logger
from tasks.engine.records import is_ours
from tasks.store.artifacts import Artifact, DamagedArtifactError, made_by, verify

P = ParamSpec("P")
R = TypeVar("R", bound=BaseModel)

PROJECT = ("pul_core", "tasks")
LIBRARIES = ("numpy", "pillow", "pyarrow", "scikit-learn", "scipy", "timm", "torch")
# Modules that only say where and how things are recorded: they change no result.
PLUMBING = ("tasks.engine", "tasks.store.home", "pul_core.settings")

_running: ContextVar[Callable[[], str] | None] = ContextVar("running", default=None)


class StepCache(CachePolicy):
    """Prefect's name for the rule above."""

    def compute_key(self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **_: Any) -> str:
        """Return the key of a step with these inputs."""
        return step_key(task_ctx.task.fn, arguments_of(inputs))


def step(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function a cached step, a Prefect task run that is named by ``name`` formatted with the function's arguments.

    The function takes and returns plain values and references. ``.fn`` is the bare function.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            running = _running.set(lambda: step_key(function, bound.arguments))
            started = time.monotonic()
            try:
                with made_by(function.__name__, **identity(without_names(bound.arguments))):
                    return _with_seconds(function(*args, **kwargs), time.monotonic() - started)
            finally:
                _running.reset(running)

        made = task_of(timed, name, cache_policy=StepCache(), persist_result=True, result_serializer="json")

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            stale = _cached_but_damaged(made, step_key(timed, bound.arguments))
            return call_linked(made.with_options(refresh_cache=stale), bound.arguments)

        vars(call).update(fn=timed, task=made)
        return call

    return decorate


def running_key() -> str | None:
    """Return the cache key of the step that runs; None outside a step."""
    key = _running.get()
    return key() if key else None


def step_key(function: Callable[..., Any], inputs: dict[str, Any]) -> str:
    """Return the cache key of a step: 40 hexadecimal digits. The iteration names a task run and changes no result."""
    parts = {
        "step": function.__name__,
        "inputs": identity(without_names(inputs)),
        "code": code_digest(function.__module__),
        "libraries": {library: importlib.metadata.version(library) for library in LIBRARIES},
    }
    return f"{function.__name__}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]}"


def without_names(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a step's arguments without the one that only names its task run."""
    return {name: value for name, value in inputs.items() if name != "iteration"}


def identity(value: Any) -> Any:
    """Return what a value adds to a key: an artifact its digest, models and collections their parts, plain values themselves."""
    if hasattr(value, "identity"):
        return value.identity()
    if isinstance(value, BaseModel):
        return {name: identity(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, dict):
        return {str(name): identity(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [identity(part) for part in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"a step's input must be a plain value or a reference, not {type(value).__name__}")


@functools.cache
def code_digest(module: str) -> str:
    """Return a digest of the project's code that a module reaches through its imports, without comments and docstrings."""
    digest = hashlib.sha256()
    for name in sorted(_reached(module)):
        digest.update(f"{name}\n{_bare_source(name)}\n".encode())
    return digest.hexdigest()


def _reached(module: str) -> set[str]:
    found, todo = set[str](), [module]
    while todo:
        name = todo.pop()
        if name in found or name.startswith(PLUMBING):
            continue
        found.add(name)
        todo += [imported for imported in _imports(name) if imported.split(".")[0] in PROJECT]
    return found


@functools.cache
def _tree(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _imports(module: str) -> Iterator[str]:
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def _bare_source(module: str) -> str:
    tree = ast.parse(ast.unparse(_tree(module)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.Expr(ast.Constant(None))
    return ast.unparse(tree)


def _cached_but_damaged(made: Task[P, R], key: str) -> bool:
    store: Any = get_result_store().update_for_task(made)
    try:
        record = store.result_storage.read_path(key, _sync=True)
    except Exception:  # no storage block says in the same way that there is nothing
        return False
    if not is_ours(record, key):  # whoever else wrote it: Prefect must not even look whether it is there, for that reads it
        step_logger().warning("the record of step %s is not what this project wrote there: the step is run again", key)
        return True
    try:
        for artifact in artifacts_in(store.read(key).result):
            verify(artifact)
    except DamagedArtifactError as error:
        step_logger().warning("%s: %s is run again", error.what, made.name)
    except Exception as error:  # whatever is wrong with a record, the step can be run again
        step_logger().warning("the stored result of %s cannot be read (%s): it is run again", made.name, type(error).__name__)
    else:
        return False
    return True


def artifacts_in(value: Any) -> Iterator[Artifact]:
    """Yield the artifacts a step's result refers to."""
    if isinstance(value, Artifact):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from artifacts_in(getattr(value, name))


def _with_seconds(result: R, seconds: float) -> R:
    """Note how long the original computation took on the reference, never in the file."""
    if isinstance(result, Artifact):
        return result.model_copy(update={"seconds": round(seconds, 3)})
    parts = {
        name: _with_seconds(part, seconds) for name in type(result).model_fields if isinstance(part := getattr(result, name), BaseModel)
    }
    return result.model_copy(update=parts)
