"""The report of runs: reads their artifacts and metrics, and writes one self-contained HTML file."""
