"""Steps: functions as cached Prefect tasks. A step's cache key covers everything that its result depends on.

The key is made of the digests of the input artifacts, the parameters that the step reads, the project code that it can reach (`code`), the
versions of the libraries that compute, and the kind of device and the precision it uses. Prefect's cache therefore does the resuming, and
edited code is never served an old result. The number of threads is recorded with the run, but is not part of keys: a run can be resumed
on a machine with fewer cores. Equal bytes are promised for equal numbers of threads only.
"""

import functools
import hashlib
import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import is_dataclass
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.results import get_result_store
from pydantic import BaseModel

from pul_core.settings import read_settings
from tasks.engine.code import code_digest
from tasks.engine.compute import library_versions
from tasks.engine.links import call_task, make_task, task_arguments
from tasks.engine.progress import step_logger
from tasks.engine.records import is_trusted_result
from tasks.store.artifacts import Artifact, DamagedArtifactError, made_by, verify

P = ParamSpec("P")
R = TypeVar("R", bound=BaseModel)

TASK_RUN_NAME = "iteration"  # argument of steps that names their task run and changes no result

_running: ContextVar[Callable[[], str] | None] = ContextVar("running", default=None)


class StepCache(CachePolicy):
    """Prefect's name for the rule above."""

    def compute_key(self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **_: Any) -> str:
        """Return the key of a step with these inputs."""
        return step_key(task_ctx.task.fn, task_arguments(inputs))


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
                with made_by(function.__name__, **cache_token(_provenance(bound.arguments))):
                    return _with_seconds(function(*args, **kwargs), time.monotonic() - started)
            finally:
                _running.reset(running)

        made = make_task(timed, name, cache_policy=StepCache(), persist_result=True, result_serializer="json")

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            stale = _cached_but_damaged(made, step_key(timed, bound.arguments))
            return call_task(made.with_options(refresh_cache=stale), bound.arguments)

        vars(call).update(fn=timed, task=made)
        return call

    return decorate


def running_key() -> str | None:
    """Return the cache key of the step that runs; None outside a step."""
    key = _running.get()
    return key() if key else None


def step_key(function: Callable[..., Any], inputs: Mapping[str, Any]) -> str:
    """Return the cache key of a step: its name and 40 hexadecimal digits."""
    parts = {
        "step": function.__name__,
        "inputs": cache_token({name: value for name, value in inputs.items() if name != TASK_RUN_NAME}),
        "code": code_digest(function.__module__, function.__name__),
        "libraries": library_versions(),
    }
    return f"{function.__name__}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]}"


def _provenance(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs that are named in the tables a step writes: those that determine the result, not the hardware."""
    return {name: value for name, value in inputs.items() if name not in (TASK_RUN_NAME, "compute")}


def cache_token(value: Any) -> Any:
    """Return what a value adds to a cache key: plain values, with artifacts replaced by their digests.

    Of settings only those count that are read, given the choices among them (`pul_core.settings.ReadIf`). Equal numbers add the same: a
    setting whose default is 0 is read back from config.json as 0.0.

    Raises:
        TypeError: neither a plain value, settings, nor a reference.
    """
    if hasattr(value, "cache_token"):
        return value.cache_token()
    if isinstance(value, BaseModel):
        return {name: cache_token(getattr(value, name)) for name in type(value).model_fields}
    if is_dataclass(value):
        return {"settings": type(value).__name__, **{name: cache_token(part) for name, part in read_settings(value)}}
    if isinstance(value, dict):
        return {str(name): cache_token(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [cache_token(part) for part in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"the input of a step must be a plain value, settings or a reference, not {type(value).__name__}")


def _cached_but_damaged(made: Task[P, R], key: str) -> bool:
    store: Any = get_result_store().update_for_task(made)
    try:
        record = store.result_storage.read_path(key, _sync=True)
    except Exception:  # no storage block says in the same way that there is nothing
        return False
    if not is_trusted_result(record, key):  # whoever else wrote it: Prefect must not even look whether it is there, for that reads it
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
