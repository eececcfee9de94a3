"""``python -m tasks.operations.flow_subprocess``: executes one flow run in a process that is killed when its parent process dies.

The id of the flow run is read from ``$PREFECT__FLOW_RUN_ID``.
"""

import ctypes
import os
import runpy
import signal
import sys
from importlib import import_module

PARENT_PID = "PUL_PARENT"  # environment variable: process id of the parent
PR_SET_PDEATHSIG = 1  # prctl.h

if __name__ == "__main__":
    # A shell starts background jobs with SIGINT ignored, and their child processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ[PARENT_PID]):  # the parent died before the call to prctl
            sys.exit(1)
    # Prefect would import the flow with the working folder first, where a flows.py or mlflow.py may be.
    import_module(os.environ["PREFECT__FLOW_ENTRYPOINT"].rpartition(".")[0])
    sys.argv = sys.argv[:1]  # Prefect's engine reads an argument as a flow run id
    runpy.run_module("prefect.engine", run_name="__main__")
