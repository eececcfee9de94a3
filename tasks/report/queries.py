"""Section with ranked lists: the best and the worst queries, and those that changed most since direct transfer."""

from collections.abc import Sequence

import numpy as np

from pul_core.arrays import Floats, Ints
from pul_core.reporting.ranked_lists import RankedList, choose_queries, ranked_lists
from pul_core.scoring.protocols import FeatureSet
from tasks.report.formats import percent
from tasks.report.pictures import Thumbnails
from tasks.report.run_data import RunData
from tasks.report.views import GroupView, Mark, PictureView, SectionView, StripView, TableView
from tasks.store.artifacts import column

NUM_QUERIES = 5  # in each group
LENGTH = 10


def queries(run: RunData, thumbnails: Thumbnails | None) -> SectionView:
    """Show ranked lists of some queries.

    Args:
        run: the run.
        thumbnails: of the target's images; None: file names instead of pictures.
    """
    section = SectionView(
        name="queries",
        title="Ranked lists",
        lead="The nearest gallery images of a query, the nearest first. Images of the query's person from the query's own camera, and "
        "junk, are ignored and have no rank. Each group has at most one query per person.",
    )
    after = run.query_and_gallery(run.last)
    table = run.scores(run.last)
    if table is None:
        section.notes = ["The target has no labelled queries and gallery."]
        return section
    if after is None or run.pids is None:
        section.notes = [
            "The features of query and gallery were removed (pul gc). "
            f"`pul evaluate {run.id}/iteration={run.last} DATA` computes them again."
        ]
        return section
    ap = _by_row(after[2], column(table, "row"), column(table, "ap"))
    many = _by_row(after[2], column(table, "row"), column(table, "num_positives").astype(float))
    groups = [
        ("The best queries", _lists(run, after, choose_queries(ap, after[0].pids, NUM_QUERIES, largest=True, then=many), ap, thumbnails)),
        ("The worst queries", _lists(run, after, choose_queries(ap, after[0].pids, NUM_QUERIES, largest=False, then=many), ap, thumbnails)),
    ]
    before, table_before = run.query_and_gallery(0), run.scores(0)
    if run.last and before is not None and table_before is not None:
        change = ap - _by_row(after[2], column(table_before, "row"), column(table_before, "ap"))
        for title, largest in (("Gained most since iteration 0", True), ("Lost most since iteration 0", False)):
            chosen = choose_queries(change, after[0].pids, NUM_QUERIES, largest=largest)
            chosen = chosen[change[chosen] > 0] if largest else chosen[change[chosen] < 0]
            groups.append((title, _changes(run, before, after, chosen, ap, ap - change, thumbnails)))
    section.groups = [(title, each) for title, each in groups if each]
    if thumbnails is None:
        section.notes = ["Pictures are left out. `pul report --with-images` shows them."]
    return section


Sets = tuple[FeatureSet, FeatureSet, Ints, Ints]


def _by_row(rows: Ints, scored_rows: Ints, values: Floats) -> Floats:
    """Return the value of each query, NaN for a query without one."""
    aligned = np.full(len(rows), np.nan)
    aligned[np.searchsorted(rows, scored_rows)] = values
    return aligned


def _lists(run: RunData, sets: Sets, chosen: Ints, ap: Floats, thumbnails: Thumbnails | None) -> list[GroupView]:
    lists = ranked_lists(sets[0], sets[1], chosen, length=LENGTH)
    return [
        _group(
            run,
            sets,
            f"{_name(run, sets, ranked.query_idx)}: average precision {percent(ap[ranked.query_idx])}",
            [("", ranked)],
            thumbnails,
        )
        for ranked in lists
    ]


def _changes(
    run: RunData, before: Sets, after: Sets, chosen: Ints, ap: Floats, ap_before: Floats, thumbnails: Thumbnails | None
) -> list[GroupView]:
    pairs = zip(*(ranked_lists(sets[0], sets[1], chosen, length=LENGTH) for sets in (before, after)), strict=True)
    return [
        _group(
            run,
            after,
            f"{_name(run, after, new.query_idx)}: average precision {percent(ap_before[new.query_idx])} → {percent(ap[new.query_idx])}",
            [("iteration 0", old), (f"iteration {run.last}", new)],
            thumbnails,
        )
        for old, new in pairs
    ]


def _name(run: RunData, sets: Sets, query_idx: int) -> str:
    row = sets[2][query_idx]
    return f"Person {sets[0].pids[query_idx]}, camera {run.camera_name(run.camids[row])}"


def _group(run: RunData, sets: Sets, title: str, lists: Sequence[tuple[str, RankedList]], thumbnails: Thumbnails | None) -> GroupView:
    query_row = int(sets[2][lists[0][1].query_idx])
    if thumbnails is None:
        return GroupView(title, table=_table(run, sets, query_row, lists))
    strips = []
    for name, ranked in lists:
        pictures = [PictureView(thumbnails.uri(query_row), "query", "query")]
        for rank, mark, position, distance in _ranks(ranked):
            row = int(sets[3][position])
            text = f"{rank or ''} {mark}\ncamera {run.camera_name(run.camids[row])}\n{1 - distance:.2f}".strip()
            pictures.append(PictureView(thumbnails.uri(row), text, mark))
        strips.append(StripView(name, pictures))
    return GroupView(title, strips)


def _ranks(ranked: RankedList) -> list[tuple[int, Mark, int, float]]:
    """Return rank (0 if the image is ignored), mark, position and distance of the images in a list."""
    entries: list[tuple[int, Mark, int, float]] = []
    rank = 0
    for mark, position, distance in zip(ranked.marks, ranked.gallery_idx.tolist(), ranked.distance.tolist(), strict=True):
        rank += mark != "ignored"
        entries.append((0 if mark == "ignored" else rank, mark, position, distance))
    return entries


def _table(run: RunData, sets: Sets, query_row: int, lists: Sequence[tuple[str, RankedList]]) -> TableView:
    rows, marks = [], []
    for name, ranked in lists:
        for rank, mark, position, distance in _ranks(ranked):
            row = sets[3][position : position + 1]
            cells = [str(rank or "–"), mark, run.camera_name(run.camids[row[0]]), f"{1 - distance:.3f}", run.paths(row)[0]]
            rows.append([name, *cells] if name else cells)
            marks.append(mark)
    titles = [*(["list"] if lists[0][0] else []), "rank", "mark", "camera", "cosine", "gallery image"]
    return TableView(
        titles, rows, left=["list", "mark", "gallery image"], note=f"Query: {run.paths(np.array([query_row]))[0]}", marks=marks
    )
