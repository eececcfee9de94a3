"""Operating many runs: subprocesses, sweeps, lost runs, garbage collection and deletion on request."""
