"""One Prefect task a step: each reads artifacts, calls the core and writes an artifact. All side effects live here, tracking included."""

import os

# Threads that wait for the slowest one sleep instead of spinning: where another process takes a core, training is several times as fast
# (docs/adr/0013). libgomp reads it when torch is imported. This package is imported before torch by the command, its subprocesses and any
# worker, also one that is started by hand.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
