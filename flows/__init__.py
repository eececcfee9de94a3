"""The Prefect flows: the order in which tasks run, and when the loop stops. Flows contain no tensors and read no files."""
