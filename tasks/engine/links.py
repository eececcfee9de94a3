"""Tasks with exact edges in Prefect's flow-run graph: the parents of a task run are the task runs whose results it receives.

By default Prefect searches every argument for results by object identity. Python shares short strings, so most of the edges it finds are
false: a run of four iterations has 1,200 edges. In addition, Prefect's server lists an edge once per input of the parent task run, and its
page draws no edges if 500 or more are listed. A task here therefore has a single Prefect input: the results of its parents, followed by its
quoted arguments.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import TaskRunNameCallbackWithParameters
from prefect.utilities.annotations import opaque, quote
from prefect.utilities.engine import get_state_for_result
from pydantic import BaseModel

from tasks.engine.status import activity, status

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
TaskInput = tuple[Any, ...]  # the results of other tasks, which Prefect inspects; last, the function's arguments by name, quoted


class LinkedTask(Protocol[P, R_co]):
    """A function that runs as a Prefect task when it is called; ``fn`` is the plain function and ``task`` the Prefect task."""

    fn: Callable[P, Any]
    task: Task[[TaskInput], Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run the task in the current flow run."""


def linked(run_name: str) -> Callable[[Callable[P, R]], LinkedTask[P, R]]:
    """Make a function a task that is never cached; its parents in the graph are the tasks whose results are among its arguments.

    Args:
        run_name: template of the task run's name, formatted with the arguments of the function.
    """

    def decorate(function: Callable[P, R]) -> LinkedTask[P, R]:
        task = make_task(function, run_name, cache_policy=NO_CACHE)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return call_task(task, arguments_by_name(function, *args, **kwargs))

        vars(call).update(fn=function, task=task)
        return cast(LinkedTask[P, R], call)

    return decorate


def arguments_by_name(function: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
    """Return the arguments of a call by name, defaults included."""
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def make_task(function: Callable[..., R], run_name: str, **options: Any) -> Task[[TaskInput], R]:
    """Return the Prefect task of a function, to be called by `call_task`.

    Args:
        function: the function to run.
        run_name: template of the task run's name, formatted with the arguments of the function.
        options: other options of Prefect's ``Task``.
    """

    def run(inputs: TaskInput) -> R:
        if current := status.current():
            current.outcome = "done"
        return function(**inputs[-1])

    def format_run_name(parameters: dict[str, Any]) -> str:
        return run_name.format(**task_arguments(parameters))

    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):  # functools.wraps would also copy the signature
        setattr(run, attribute, getattr(function, attribute))
    return Task(run, name=function.__name__, task_run_name=cast(TaskRunNameCallbackWithParameters, format_run_name), **options)


def call_task(task: Task[[TaskInput], R], arguments: Mapping[str, Any]) -> R:
    """Call a task from `make_task`; Prefect does not inspect the arguments beyond the results of other tasks among them."""
    results = [opaque(result) for result in _task_results(list(arguments.values()))]
    format_run_name = cast(Callable[[dict[str, Any]], str], task.task_run_name)  # of `make_task`
    with activity(format_run_name({"inputs": (arguments,)})) as current:
        current.outcome = "cached"  # until the function is called
        output: R = task((*results, quote(dict(arguments))))
    return output


def task_arguments(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the function by name, from Prefect's parameters of its task run."""
    arguments: dict[str, Any] = parameters["inputs"][-1]
    return arguments


def _task_results(value: Any) -> Iterator[BaseModel | dict[str, Any]]:
    """Yield the results of tasks of the current flow run that a value consists of or contains."""
    if isinstance(value, BaseModel | dict) and get_state_for_result(value):
        yield value
        return
    if isinstance(value, BaseModel):
        value = [getattr(value, name) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _task_results(part)
