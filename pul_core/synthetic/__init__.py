"""Drawn people: identities, cameras, figures and images from a seed."""
