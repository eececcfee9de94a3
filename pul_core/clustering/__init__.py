"""Features to clusters: preprocessing, neighbours, k-means, DBSCAN, and the choice of their parameters."""
