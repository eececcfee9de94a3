"""MLflow's client and the names that MLflow is given."""

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tasks.store.home import home


@functools.cache
def client() -> MlflowClient:
    """Return a client of ``$MLFLOW_TRACKING_URI``, by default the SQLite file ``$PUL_HOME/mlflow.db``, whoever started this process."""
    if "MLFLOW_TRACKING_URI" not in os.environ and mlflow.get_tracking_uri().endswith("/mlflow.db"):
        mlflow.set_tracking_uri(f"sqlite:///{home()}/mlflow.db")
    return MlflowClient()


def experiment_named(name: str) -> Experiment:
    """Return the experiment of this name, created if there is none."""
    if known := client().get_experiment_by_name(name):
        return known
    # A server keeps artifacts where it was told to; without one they lie beside the database.
    local = mlflow.get_tracking_uri().startswith("sqlite")
    with tolerate_existing():
        client().create_experiment(name, (home() / "mlartifacts").as_uri() if local else None)
    made = client().get_experiment_by_name(name)
    assert made is not None, "it was there a moment ago"
    return made


@contextmanager
def tolerate_existing() -> Iterator[None]:
    """Two runs at once may both look, find nothing and create: who comes second has what it wanted."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def plain_name(text: str) -> str:
    """Return a name that means itself in HTML, Markdown, a URL and MLflow's filters; folders may be named anything.

    Example:
        >>> plain_name("<img src=x onerror=1> to it's/ours"), plain_name("Kölner Straße + shop_2 to ours")
        ('-img src-x onerror-1- to it-s-ours', 'Kölner Straße + shop_2 to ours')
    """
    return re.sub(r"[^\w .+-]", "-", text)[:200]
