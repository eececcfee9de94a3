"""MLflow tracking: run life cycle, metrics, models and results."""
