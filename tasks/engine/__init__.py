"""What makes a function a step: cache keys, Prefect tasks, checkpoints, progress, compute resources."""
