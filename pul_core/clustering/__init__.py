"""Clustering of features: preprocessing, neighbours, k-means, DBSCAN, and suggestions for their parameters."""
