"""Steps: functions as cached Prefect tasks. A step's cache key covers everything that its result depends on.

The key is made of the digests of the input artifacts, the parameters that the step reads, the project code that it can reach (`code`), the
versions of the libraries that compute, and the kind of device and the precision. A resumed run therefore finds its finished steps in
Prefect's cache, and a result of older code is never used. The number of threads is recorded with the run but is not part of the key, so
that a run can be resumed on a machine with fewer cores; equal bytes are promised for equal numbers of threads only.
"""

import functools
import hashlib
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
from tasks.engine.links import arguments_by_name, call_task, make_task, task_arguments
from tasks.engine.progress import step_logger
from tasks.engine.records import is_trusted_result
from tasks.store.artifacts import Artifact, DamagedArtifactError, made_by, verify

P = ParamSpec("P")
R = TypeVar("R", bound=BaseModel)

TASK_RUN_NAME = "iteration"  # argument of steps that only names their task run

running_key: ContextVar[str | None] = ContextVar("running_key", default=None)  # cache key of the step that runs; None outside a step


class StepCache(CachePolicy):
    """The cache policy of steps: the key is `step_key` of the function and its arguments."""

    def compute_key(self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **_: Any) -> str:
        """Return the cache key of a task run."""
        return step_key(task_ctx.task.fn, task_arguments(inputs))


def step(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function a cached step: calling it in a flow executes a Prefect task, or returns the stored result of an equal call.

    The function takes and returns plain values and references. ``.fn`` executes it without Prefect.

    Args:
        name: template of the task run's name, formatted with the arguments of the function.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def execute(*args: P.args, **kwargs: P.kwargs) -> R:
            arguments = arguments_by_name(function, *args, **kwargs)
            # Tables name the inputs that determine the result, not the hardware.
            inputs = {key: value for key, value in arguments.items() if key not in (TASK_RUN_NAME, "compute")}
            token = running_key.set(step_key(function, arguments))
            started = time.monotonic()
            try:
                with made_by(function.__name__, **cache_token(inputs)):
                    return _with_seconds(function(*args, **kwargs), time.monotonic() - started)
            finally:
                running_key.reset(token)

        task = make_task(execute, name, cache_policy=StepCache(), persist_result=True, result_serializer="json")

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            arguments = arguments_by_name(function, *args, **kwargs)
            must_rerun = _has_unusable_result(task, step_key(function, arguments))
            return call_task(task.with_options(refresh_cache=must_rerun), arguments)

        vars(call).update(fn=execute, task=task)
        return call

    return decorate


def step_key(function: Callable[..., Any], inputs: Mapping[str, Any]) -> str:
    """Return the cache key of a step: its name and 40 hexadecimal digits."""
    parts = {
        "step": function.__name__,
        "inputs": cache_token({name: value for name, value in inputs.items() if name != TASK_RUN_NAME}),
        "code": code_digest(function.__module__, function.__name__),
        "libraries": library_versions(),
    }
    return f"{function.__name__}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]}"


def cache_token(value: Any) -> Any:
    """Return what a value adds to a cache key: plain values, with artifacts replaced by their digests.

    Settings that are not read because of the values of others (`pul_core.settings.ReadIf`) are left out. Equal numbers add the same:
    a setting whose default is 0 is read back from config.json as 0.0.

    Raises:
        TypeError: the value is neither plain nor settings nor a reference.
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


def _has_unusable_result(task: Task[P, R], key: str) -> bool:
    """Return whether a result is stored under a key that must not be used: it is not trusted, or an artifact it refers to is damaged.

    If so, Prefect must not even look the result up, because it would read the record.
    """
    store: Any = get_result_store().update_for_task(task)
    try:
        record = store.result_storage.read_path(key, _sync=True)
    except Exception:  # nothing is stored; the type of the error depends on the storage block
        return False
    if not is_trusted_result(record, key):
        step_logger().warning("the record of step %s was not written by this project: the step is run again", key)
        return True
    try:
        for artifact in artifacts_in(store.read(key).result):
            verify(artifact)
    except DamagedArtifactError as error:
        step_logger().warning("%s: %s is run again", error.what, task.name)
    except Exception as error:  # whatever is wrong with a record, the step can be run again
        step_logger().warning("the stored result of %s cannot be read (%s): it is run again", task.name, type(error).__name__)
    else:
        return False
    return True


def artifacts_in(value: Any) -> Iterator[Artifact]:
    """Yield the artifacts that a reference, such as a step's result, consists of or contains."""
    if isinstance(value, Artifact):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from artifacts_in(getattr(value, name))


def _with_seconds(result: R, seconds: float) -> R:
    """Return a step's result with its computing time in all artifacts; the time is stored in the reference, never in the file."""
    if isinstance(result, Artifact):
        return result.model_copy(update={"seconds": round(seconds, 3)})
    parts = {
        name: _with_seconds(part, seconds) for name in type(result).model_fields if isinstance(part := getattr(result, name), BaseModel)
    }
    return result.model_copy(update=parts)
