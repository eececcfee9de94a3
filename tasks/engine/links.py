"""Prefect's graph: an edge from every task whose result a task is given, and none else.

Left to itself Prefect looks into each argument and finds parents by the identity of whatever a task returned, short strings included, which
Python shares: a run of four iterations gets 1,200 edges, most of them false. Its server lists an edge once for each input of the parent,
be that an edge itself or an argument without one; from 500 listed ones on its page draws none. So a task has one input here: its parents.
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

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Given = tuple[Any, ...]  # what other tasks made, for Prefect to see; last the arguments by name, for the function


class Linked(Protocol[P, R_co]):
    """A task whose call draws the edges of its arguments; ``fn`` is the bare function, ``task`` Prefect's."""

    fn: Callable[P, Any]
    task: Task[[Given], Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run the task in the flow run."""


def linked(run_name: str) -> Callable[[Callable[P, R]], Linked[P, R]]:
    """Make a function a task that is never cached and draws the edges of its arguments when it is called.

    Args:
        run_name: of its task runs, formatted with the arguments.
    """

    def decorate(function: Callable[P, R]) -> Linked[P, R]:
        task = task_of(function, run_name, cache_policy=NO_CACHE)
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return call_linked(task, bound.arguments)

        vars(call).update(fn=function, task=task)
        return cast(Linked[P, R], call)

    return decorate


def task_of(function: Callable[..., R], run_name: str, **options: Any) -> Task[[Given], R]:
    """Return Prefect's task of a function, for `call_linked`.

    Args:
        function: what it runs.
        run_name: of its task runs, formatted with the function's arguments.
        options: Prefect's.
    """

    def run(given: Given) -> R:
        return function(**given[-1])

    def name(parameters: dict[str, Any]) -> str:
        return run_name.format(**arguments_of(parameters))

    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):  # all that functools.wraps copies, but for the signature
        setattr(run, attribute, getattr(function, attribute))
    return Task(run, name=function.__name__, task_run_name=cast(TaskRunNameCallbackWithParameters, name), **options)


def call_linked(task: Task[[Given], R], arguments: Mapping[str, Any]) -> R:
    """Call a task of `task_of` with arguments Prefect does not look into, as a child of the tasks that made them."""
    made = [opaque(result) for result in _made(list(arguments.values()))]
    result: R = task((*made, quote(dict(arguments))))
    return result


def arguments_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the function's arguments by name, from the parameters of a task of `task_of`."""
    arguments: dict[str, Any] = parameters["given"][-1]
    return arguments


def _made(value: Any) -> Iterator[BaseModel | dict[str, Any]]:
    """Find what tasks of this flow run returned, in other values or on its own."""
    if isinstance(value, BaseModel | dict) and get_state_for_result(value):
        yield value
        return
    if isinstance(value, BaseModel):
        value = [getattr(value, name) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _made(part)
