"""Evaluation: ranks, scores, protocols, re-ranking, and the summary of a run."""
