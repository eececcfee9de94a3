"""Camera-by-camera tables: which cameras the clusters join, and rank-1 from each camera to each other one."""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from pul_core.arrays import Floats, Ints
from pul_core.identities import NO_CAMERA
from pul_core.scoring.evaluation import score_queries
from pul_core.scoring.protocols import FeatureSet


class CameraLinks(NamedTuple):
    """How many groups (clusters, or people) have images of two cameras. Single images, and images of unknown cameras, are left out."""

    camids: Ints  # (c,) the cameras, ascending
    groups: Ints  # (c, c) number of groups with images of both cameras; on the diagonal, with images of the camera
    crossing: Ints  # (c,) number of groups with images of the camera and of another one

    def isolated(self, max_share: float) -> list[int]:
        """Return the cameras of which at most this share of the groups also has an image of another camera."""
        totals = np.diag(self.groups)
        return [
            int(camid) for camid, crossing, total in zip(self.camids, self.crossing, totals, strict=True) if crossing <= max_share * total
        ]


def camera_links(groups: Ints, camids: Ints) -> CameraLinks:
    """Count the groups that join each pair of cameras.

    Args:
        groups: (n,) cluster or identity of each image; below 0 for an image in no group.
        camids: (n,) camera of each image; -1 is unknown.

    Example:
        >>> links = camera_links(np.array([0, 0, 0, 1, 1, 2, -1]), np.array([1, 1, 2, 3, 3, 1, 2]))
        >>> links.camids.tolist(), links.groups.tolist(), links.isolated(0)
        ([1, 2, 3], [[1, 1, 0], [1, 1, 0], [0, 0, 1]], [3])
    """
    known = (groups >= 0) & (camids != NO_CAMERA)
    names, counts = np.unique(groups[known], return_counts=True)
    cameras, camera = np.unique(camids[known], return_inverse=True)
    group = np.searchsorted(names, groups[known])
    shape = len(names), len(cameras)
    members = sparse.csr_matrix((np.ones(len(group), np.int64), (group, camera)), shape=shape)  # duplicates are added up
    members.data[:] = 1
    members = members[counts >= 2]
    crossing = members[np.asarray(members.sum(1)).ravel() >= 2].sum(0)
    return CameraLinks(cameras, (members.T @ members).toarray(), np.asarray(crossing).ravel())


class CameraScores(NamedTuple):
    """Rank-1 by the camera of the query and the camera of the gallery."""

    query_camids: Ints  # (a,)
    gallery_camids: Ints  # (b,)
    rank_1: Floats  # (a, b) share of the queries with a correct match; NaN if there is none
    num_queries: Ints  # (a, b) queries with a correct match


def rank_1_by_camera(query: FeatureSet, gallery: FeatureSet, *, device: str = "cpu") -> CameraScores:
    """Score the queries of each camera against the gallery images of each camera, by the rules of Market-1501.

    Together the searches compare each query with each gallery image once, and memory is that of `score_queries`.

    Args:
        query: the queries.
        gallery: the gallery.
        device: where distances are computed.

    Example:
        >>> sets = [FeatureSet(np.eye(2, dtype=np.float32)[[0, 1]], np.array([1, 2]), np.array(camids)) for camids in ([1, 1], [1, 2])]
        >>> rank_1_by_camera(*sets).rank_1.tolist()
        [[nan, 1.0]]
    """
    query_camids, row = np.unique(query.camids, return_inverse=True)
    gallery_camids = np.unique(gallery.camids)
    hits, num_queries = np.zeros((2, len(query_camids), len(gallery_camids)), np.int64)
    for column, camid in enumerate(gallery_camids):
        at = np.flatnonzero(gallery.camids == camid)
        scores = score_queries(*query, gallery.features[at], gallery.pids[at], gallery.camids[at], device=device)
        hits[:, column] = np.bincount(row, scores.first_hit == 1, len(query_camids))
        num_queries[:, column] = np.bincount(row, scores.num_positives > 0, len(query_camids))
    with np.errstate(invalid="ignore"):
        return CameraScores(query_camids, gallery_camids, hits / num_queries, num_queries)
