"""Scoring: ranks of correct matches, metrics, protocols, re-ranking, and the summary of a run."""
