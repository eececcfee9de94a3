"""Clustering of features: preprocessing, nearest neighbours, k-means, DBSCAN, and suggestions for their parameters."""
