"""The MLflow experiment and the registered model of a domain pair, found by the locations of its data sets.

Their names are for reading only. Two folders can have the same last name, so a name that another pair has gets the parent folders.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from mlflow.entities import Experiment, ViewType
from mlflow.exceptions import MlflowException

from tasks.data.locations import image_root, is_url
from tasks.index import dataset_root
from tasks.models import MLFLOW_URI, model_file
from tasks.store.config import Plan
from tasks.tracking.client import client, get_or_create_experiment, safe_name

DOMAIN_PAIR_TAG = "pul.domain_pair"  # tag of an experiment and of a registered model: `DomainPair.digest`


class DomainPair(NamedTuple):
    """The digest of the locations of a run's sources (or original model) and target, and names for the pair, the shortest first."""

    digest: str
    names: list[str]


def domain_pair(plan: Plan, sources: list[str], target: str) -> DomainPair:
    """Return the domain pair of a run.

    Args:
        plan: holds the paths of the data sets and of the original model.
        sources: short names of the sources.
        target: short name of the target.
    """
    origins = [canonical_location(path) for path in plan.source] or [_model_location(str(plan.original_model))]
    location = canonical_location(plan.target)
    digest = hashlib.sha256(json.dumps([sorted(origins), location]).encode()).hexdigest()[:16]
    names = [*(sources or [_model_name(str(plan.original_model))]), target]
    folders = [*(map(image_root, origins) if sources else origins), image_root(location)]
    longer = [_with_parent(name, folder) for name, folder in zip(names, folders, strict=True)]
    short, long = (safe_name(f"{' + '.join(parts[:-1])} to {parts[-1]}") for parts in (names, longer))
    return DomainPair(digest, [short, long, f"{short[:180]} {digest}"])


def experiment_of(pair: DomainPair) -> Experiment:
    """Return the experiment of a domain pair, creating it if necessary."""
    is_of_pair = f"tags.`{DOMAIN_PAIR_TAG}` = '{pair.digest}'"
    for view in (ViewType.ACTIVE_ONLY, ViewType.DELETED_ONLY):
        if existing := client().search_experiments(view, filter_string=is_of_pair):
            return get_or_create_experiment(existing[0].name)
    for name in pair.names:
        experiment = get_or_create_experiment(name, {DOMAIN_PAIR_TAG: pair.digest})
        if DOMAIN_PAIR_TAG not in experiment.tags:  # of an older version
            client().set_experiment_tag(experiment.experiment_id, DOMAIN_PAIR_TAG, pair.digest)
            break
        if experiment.tags[DOMAIN_PAIR_TAG] == pair.digest:
            break
    return experiment


def registered_model_of(experiment: Experiment) -> str:
    """Return the name of the registered model of an experiment's domain pair, creating the model if necessary."""
    digest = experiment.tags.get(DOMAIN_PAIR_TAG, experiment.experiment_id)
    if existing := client().search_registered_models(f"tags.`{DOMAIN_PAIR_TAG}` = '{digest}'"):
        return str(existing[0].name)
    for name in (f"pul {safe_name(experiment.name)}", f"pul {safe_name(experiment.name)[:180]} {digest}"):
        try:
            client().create_registered_model(name, {DOMAIN_PAIR_TAG: digest})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        owner = client().get_registered_model(name).tags.get(DOMAIN_PAIR_TAG)
        if owner is None:  # of an older version
            client().set_registered_model_tag(name, DOMAIN_PAIR_TAG, digest)
        if owner in (None, digest):
            break
    return name


def canonical_location(path: str) -> str:
    """Return one text for all ways to write a location: absolute paths without links, URLs without a final slash.

    Example:
        >>> canonical_location("S3://Bucket/crops/"), canonical_location("synthetic:007/target"), canonical_location("/siteA/../siteB/")
        ('s3://bucket/crops', 'synthetic:7/target', '/siteB')
    """
    if is_url(path):
        url = urlsplit(path)
        return url._replace(netloc=url.netloc.lower(), path=url.path.rstrip("/")).geturl()
    if synthetic := re.fullmatch(r"synthetic:(\d+)(/.*)", path):
        return f"synthetic:{int(synthetic[1])}{synthetic[2]}"
    return dataset_root(path)


def _model_location(reference: str) -> str:
    """Return the location of an original model; that of an earlier run is the file of the run's model."""
    if MLFLOW_URI.match(reference):
        return reference
    with model_file(reference) as file:
        return str(file.resolve())


def _model_name(reference: str) -> str:
    """Return a short name for an original model: the name of its file, or the whole reference of an earlier run or MLflow's model.

    Example:
        >>> _model_name("/models/osnet.pth"), _model_name("amber-fox-1f2e3d4c/iteration=2")
        ('osnet.pth', 'amber-fox-1f2e3d4c/iteration=2')
    """
    return Path(reference).name if Path(reference).is_file() or Path(reference).is_absolute() else reference


def _with_parent(name: str, location: str) -> str:
    """Return a name with the folder that contains a location.

    Example:
        >>> _with_parent("crops", "/data/siteA/crops"), _with_parent("synthetic-0-target", "synthetic:0/target")
        ('crops in siteA', 'synthetic-0-target')
    """
    parent = "" if location.startswith("synthetic:") else location.rstrip("/").rpartition("/")[0].rpartition("/")[2]
    return f"{name} in {parent}" if parent else name
