"""``python -m tasks.operations.flow_subprocess``: executes one flow run in a process that is killed when its parent process dies.

The id of the flow run is read from ``$PREFECT__FLOW_RUN_ID``.
"""

import ctypes
import os
import runpy
import signal
import sys

PARENT_PID = "PUL_PARENT"  # environment variable: process id of the parent
PR_SET_PDEATHSIG = 1  # prctl.h

if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell ignores SIGINT in its background jobs, and their children inherit that
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ[PARENT_PID]):  # the parent died before the call to prctl
            sys.exit(1)
    sys.argv = sys.argv[:1]  # Prefect's engine would take another argument for a flow run id
    runpy.run_module("prefect.engine", run_name="__main__")
