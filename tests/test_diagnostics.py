"""The quality of clusters, compared with a loop over clusters and people."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score

from pul_core.scoring.diagnostics import cluster_quality


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), min_size=1, max_size=30))
def test_it_equals_a_loop_over_clusters_and_people(images):
    known = [(cluster, pid) for cluster, pid in images if cluster >= 0 and pid >= 0]
    quality = cluster_quality(*np.array(images).T)
    if not known:
        assert quality is None
        return
    people = {pid for _, pid in known}
    correct = sum(max(Counter(pid for c, pid in known if c == cluster).values()) for cluster in {c for c, _ in known})
    spread = [len({cluster for cluster, p in known if p == pid}) for pid in people]
    clusters, pids = zip(*known, strict=True)
    expected = (normalized_mutual_info_score(pids, clusters), correct / len(known), sum(spread) / len(people))
    assert quality == pytest.approx(expected)
