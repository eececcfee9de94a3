"""Builds the report of one or several runs."""

from pul_core.scoring.comparison import summarise_run
from tasks.data.locations import image_root
from tasks.index import dataset_root
from tasks.report.cameras import cameras, links_of
from tasks.report.clusters import clusters
from tasks.report.compare import compare
from tasks.report.feature_map import feature_map
from tasks.report.formats import count, duration, percent, points
from tasks.report.iterations import reliable_set, scores, times
from tasks.report.page import Chapter, render
from tasks.report.pictures import Thumbnails
from tasks.report.provenance import provenance
from tasks.report.queries import queries
from tasks.report.run_data import RunData
from tasks.report.trust import verdict_on


def report_page(runs: list[RunData], *, with_images: bool = False) -> str:
    """Return the report of runs as an HTML page; several are shown side by side first.

    Args:
        runs: the runs.
        with_images: whether pictures of the target are shown.

    Raises:
        DamagedArtifactError: an artifact of a run is missing or damaged.
    """
    chapters = [_chapter(run, with_images=with_images) for run in runs]
    title = f"pul-reid: {runs[0].id}" if len(runs) == 1 else f"{len(runs)} runs side by side"
    return render(title, compare(runs) if len(runs) > 1 else None, chapters)


def comparison_page(runs: list[RunData]) -> str:
    """Return a page that only shows runs side by side."""
    return render(f"{len(runs)} runs side by side", compare(runs), [])


def _chapter(run: RunData, *, with_images: bool) -> Chapter:
    thumbnails = _thumbnails(run) if with_images else None
    cluster_links, people_links = links_of(run)
    sections = [
        reliable_set(run),
        scores(run),
        clusters(run, thumbnails),
        queries(run, thumbnails),
        feature_map(run),
        cameras(run, cluster_links, people_links),
        times(run),
        provenance(run),
    ]
    origins = run.parameters.get("source") or [str(run.parameters.get("original_model"))]
    subtitle = f"{', '.join(map(_short_name, origins))} to {_short_name(str(run.parameters['target']))}, recipe {run.recipe}"
    return Chapter(run.id, subtitle, _figures(run), verdict_on(run, cluster_links, people_links), sections)


def _short_name(location: str) -> str:
    """Return the name of a data set or model without its folders; provenance has the full one."""
    return location if location.startswith("synthetic:") else location.rstrip("/").rpartition("/")[2]


def _figures(run: RunData) -> list[tuple[str, str, str]]:
    """Return the most important numbers of a run: title, value and remark."""
    row = summarise_run(run.metrics)
    stop = f"after iteration {run.last}"
    figures = []
    if row["mAP"] is not None:
        figures += [
            (title, percent(row[name]), f"{points(row[f'gain_{name}'])} points over {percent(row[f'direct_{name}'])}")
            for title, name in (("mAP", "mAP"), ("rank-1", "rank_1"))
        ]
    if row["reliable_set_size"] is not None:
        share = run.metrics[run.last].get("reliable_fraction")
        figures.append(("reliable images", count(row["reliable_set_size"]), f"{percent(share, 0)} of the training images"))
        figures.append(("clusters", count(row["num_clusters"]), stop))
    return [*figures, ("computing time", duration(row["seconds"]), "after source training")]


def _thumbnails(run: RunData) -> Thumbnails:
    root = image_root(dataset_root(str(run.parameters["target"])))
    return Thumbnails(root, run.images["path"].to_pylist(), run.images["sha256"].to_pylist())
