"""The Prefect flows: the order in which tasks run, and when the loop stops. Flows contain no tensors and read no files."""

import atexit
import gc

# A third of the CPU time that a process needed to start and end went into the search for cyclic garbage among the objects of imported
# libraries (docs/adr/0013). Here and not in `tasks`, whose code is part of the cache keys.
gc.set_threshold(10_000, 20, 20)
atexit.register(gc.freeze)
