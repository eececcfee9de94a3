"""Prefect's graph: an edge from every task whose reference a task is given, and none else.

Left to itself Prefect looks into each argument and finds parents by the identity of whatever a task returned, short strings included, which
Python shares: a run of four iterations gets 1,200 edges, most of them false, and from 500 on its page draws none.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from prefect import Task
from prefect.utilities.annotations import opaque, quote
from prefect.utilities.engine import get_state_for_result
from pydantic import BaseModel

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Linked(Protocol[P, R_co]):
    """A task whose call draws the edges of its arguments; ``fn`` is the bare function, ``task`` is Prefect's."""

    fn: Callable[P, Any]
    task: Task[P, Any]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run the task in the flow run."""


def linked(task: Task[P, R]) -> Linked[P, R]:
    """Make a task draw the edges of its arguments when it is called."""
    signature = inspect.signature(task.fn)

    @functools.wraps(task.fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return call_linked(task, signature.bind(*args, **kwargs).arguments)

    vars(call).update(fn=task.fn, task=task)
    return cast(Linked[P, R], call)


def call_linked(task: Task[..., R], arguments: Mapping[str, Any]) -> R:
    """Call a task with arguments Prefect does not look into, as a child of the tasks that made them."""
    made = [opaque(reference) for reference in _made(list(arguments.values()))]
    result: R = task(**{name: quote(value) for name, value in arguments.items()}, wait_for=made or None)
    return result


def _made(value: Any) -> Iterator[BaseModel]:
    """Find the references that tasks of this flow run returned, in others or on their own."""
    if isinstance(value, BaseModel):
        if get_state_for_result(value):
            yield value
            return
        value = [getattr(value, name) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _made(part)
