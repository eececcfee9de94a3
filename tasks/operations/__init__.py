"""Operating many runs: processes, sweeps, lost runs, garbage collection, purge."""
