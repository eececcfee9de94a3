"""MLflow: the life cycle of runs, metrics, models, results."""
