"""The MLflow client, and helpers for experiments, searches and names."""

import functools
import os
import re
from collections.abc import Callable
from typing import TypeVar

import mlflow
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException
from mlflow.store.entities.paged_list import PagedList
from mlflow.tracking import MlflowClient

from tasks.store.home import home

T = TypeVar("T")


@functools.cache
def client() -> MlflowClient:
    """Return the client of ``$MLFLOW_TRACKING_URI``, by default of the SQLite database ``$PUL_HOME/mlflow.db``."""
    # MLflow's own default is a database in the working directory.
    if "MLFLOW_TRACKING_URI" not in os.environ and mlflow.get_tracking_uri().endswith("/mlflow.db"):
        mlflow.set_tracking_uri(f"sqlite:///{home()}/mlflow.db")
    return MlflowClient()


def get_or_create_experiment(name: str, tags: dict[str, str] | None = None) -> Experiment:
    """Return the experiment with this name, creating it with these tags if necessary."""
    if experiment := client().get_experiment_by_name(name):
        return experiment
    # A tracking server chooses the artifact location; without a server, artifacts are stored beside the database.
    is_local = mlflow.get_tracking_uri().startswith("sqlite")
    try:
        client().create_experiment(name, (home() / "mlartifacts").as_uri() if is_local else None, tags)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # otherwise a concurrent run has created it since the look-up
            raise
    created = client().get_experiment_by_name(name)
    assert created is not None
    return created


def search_all_runs(filter_string: str, order_by: list[str] | None = None, limit: int | None = None) -> list[Run]:
    """Return the runs of all experiments that match an MLflow filter, the newest first by default; at most `limit` runs."""
    experiment_ids = [experiment.experiment_id for experiment in _all_pages(client().search_experiments)]
    return search_runs(experiment_ids, filter_string, order_by, limit)


def search_runs(experiment_ids: list[str], filter_string: str, order_by: list[str] | None = None, limit: int | None = None) -> list[Run]:
    """Return the runs of some experiments that match an MLflow filter; MLflow itself returns one page, of 1,000 runs at most."""
    search = functools.partial(client().search_runs, experiment_ids, filter_string, order_by=order_by)
    return list(search(max_results=limit)) if limit else _all_pages(search)


def _all_pages(search: Callable[..., PagedList[T]]) -> list[T]:
    """Return the items of all pages of an MLflow search."""
    page = search()
    items = list(page)
    while page.token:
        page = search(page_token=page.token)
        items += page
    return items


def safe_name(text: str) -> str:
    """Replace characters that are special in HTML, Markdown, URLs or MLflow filters, because folders can have any name.

    Example:
        >>> safe_name("<img src=x onerror=1> to it's/ours"), safe_name("Kölner Straße + shop_2 to ours")
        ('-img src-x onerror-1- to it-s-ours', 'Kölner Straße + shop_2 to ours')
    """
    return re.sub(r"[^\w .+-]", "-", text)[:200]
