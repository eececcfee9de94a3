"""The MLflow client, and helpers for experiments, searches and names."""

import contextlib
import fcntl
import functools
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import mlflow
from mlflow.entities import Experiment, LifecycleStage, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.entities.paged_list import PagedList
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from pul_core.errors import UserError
from tasks.engine.progress import step_logger
from tasks.store.home import UI_URL_FILE, home

T = TypeVar("T")
# Tag of an experiment that makes MLflow's UI open it on training runs; without it the pages for language models come first.
EXPERIMENT_KIND = {"mlflow.experimentKind": "custom_model_development"}


@functools.cache
def client() -> MlflowClient:
    """Return the client of ``$MLFLOW_TRACKING_URI``, by default of the SQLite database ``$PUL_HOME/mlflow.db``.

    Raises:
        UserError: the server does not answer, or the database cannot be written or lacks its package.
    """
    # MLflow's own default is a database in the working directory.
    if "MLFLOW_TRACKING_URI" not in os.environ and mlflow.get_tracking_uri().endswith("/mlflow.db"):
        mlflow.set_tracking_uri(f"sqlite:///{home()}/mlflow.db")
    if mlflow.get_tracking_uri().startswith("http"):
        _check_server(mlflow.get_tracking_uri())
        return MlflowClient()
    _check_file(mlflow.get_tracking_uri())
    with (home() / "mlflow.lock").open("a") as lock:  # two processes that create the tables at the same time fail
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            created = MlflowClient()
            created.search_experiments(max_results=1)
        except ModuleNotFoundError as error:
            raise UserError(f"MLFLOW_TRACKING_URI requires the package {error.name}: install it, or unset MLFLOW_TRACKING_URI") from error
    return created


def _check_file(uri: str) -> None:
    """Check that a SQLite database can be written, because MLflow itself would retry for minutes."""
    scheme, _, path = uri.partition(":///")
    file = Path(path.partition("?")[0])
    writable = (
        os.access(file, os.W_OK) if file.is_file() else file.parent.is_dir() and os.access(file.parent, os.W_OK) and not file.exists()
    )
    if scheme.startswith("sqlite") and not writable:
        raise UserError(f"MLflow's database {file} cannot be written: create its folder, make both writable, or set MLFLOW_TRACKING_URI")


def _check_server(url: str) -> None:
    """Check that a server answers at all, because MLflow itself would retry for minutes."""
    address = re.sub("//[^/@]*@", "//", url)  # without a password
    try:
        urllib.request.urlopen(address, timeout=30).close()
    except urllib.error.HTTPError:
        pass
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):  # MLflow has settings of its own for certificates
            return
        raise UserError(
            f"MLflow's server at {address} does not answer ({reason}): start it, or correct or unset MLFLOW_TRACKING_URI"
        ) from error


def get_or_create_experiment(name: str, tags: dict[str, str] | None = None) -> Experiment:
    """Return the experiment with this name, creating it with these tags if necessary; one that was deleted in MLflow is restored."""
    tags = EXPERIMENT_KIND | (tags or {})
    if experiment := client().get_experiment_by_name(name):
        if experiment.lifecycle_stage == LifecycleStage.DELETED:  # as long as it is in the trash, its name cannot be used again
            client().restore_experiment(experiment.experiment_id)
            step_logger().warning("experiment %r was deleted in MLflow: it is restored, because this run belongs to it", name)
        for tag, value in EXPERIMENT_KIND.items():
            if tag not in experiment.tags:  # of an older version
                client().set_experiment_tag(experiment.experiment_id, tag, value)
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


def delete_logged(run_id: str, path: str | None = None) -> Path | None:
    """Delete a file that is logged to an MLflow run, or all of them, wherever MLflow stores them.

    Args:
        run_id: the MLflow run.
        path: of the file in the run's artifacts; None: everything.

    Returns:
        The deleted file or folder if it was on this disk; None if there was nothing, or it was elsewhere.
    """
    uri = client().get_run(run_id).info.artifact_uri
    repository = get_artifact_repository(uri)
    if is_local_uri(uri):  # type: ignore[no-untyped-call]
        file = Path(local_file_uri_to_path(uri), path or "")  # type: ignore[no-untyped-call]
        if not file.exists():
            return None
        repository.delete_artifacts(path)  # type: ignore[no-untyped-call]
        return file
    with contextlib.suppress(MlflowException):  # there is no such file
        repository.delete_artifacts(path)  # type: ignore[no-untyped-call]
    return None


def ui_url() -> str | None:
    """Return the address of MLflow's UI: the tracking server, or that of `pul up`; None if it is not known."""
    if (uri := mlflow.get_tracking_uri()).startswith("http"):
        return re.sub("//[^/@]*@", "//", uri).rstrip("/")  # without a password
    try:
        return (home() / UI_URL_FILE).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def search_all_runs(filter_string: str, order_by: list[str] | None = None, limit: int | None = None) -> list[Run]:
    """Return the runs of all experiments that match an MLflow filter, the newest first by default; at most `limit` runs."""
    experiment_ids = [experiment.experiment_id for experiment in _all_pages(client().search_experiments)]
    return search_runs(experiment_ids, filter_string, order_by, limit)


def search_runs(
    experiment_ids: list[str],
    filter_string: str,
    order_by: list[str] | None = None,
    limit: int | None = None,
    view: int = ViewType.ACTIVE_ONLY,
) -> list[Run]:
    """Return the runs of some experiments that match an MLflow filter; MLflow itself returns one page, of 1,000 runs at most."""
    search = functools.partial(client().search_runs, experiment_ids, filter_string, view, order_by=order_by)
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
