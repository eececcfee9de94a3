"""Synthetic pedestrian images: identities, cameras and whole data sets generated from a seed."""
