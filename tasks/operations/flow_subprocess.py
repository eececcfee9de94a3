"""``python -m tasks.operations.flow_subprocess``: the process of one flow run, which dies with its parent process.

The run's id is in ``$PREFECT__FLOW_RUN_ID``.
"""

import ctypes
import os
import runpy
import signal
import sys

PARENT = "PUL_PARENT"  # process id of whoever waits
PR_SET_PDEATHSIG = 1  # prctl.h

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in a shell's background has it ignored
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ[PARENT]):  # it died before that was said
            sys.exit(1)
    sys.argv = sys.argv[:1]  # the engine would read a flow run's id there
    runpy.run_module("prefect.engine", run_name="__main__")
