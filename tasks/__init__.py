"""One Prefect task a step: each reads artifacts, calls the core and writes an artifact. All side effects live here, tracking included."""

import atexit
import gc

# A third of the time that a process needs to start and end went into the search for cycles among the million objects of the imported
# libraries, hundreds of times during the imports and once more at the end (docs/adr/0013).
gc.set_threshold(10_000, 20, 20)
atexit.register(gc.freeze)
