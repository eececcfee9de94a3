"""A process that has imported all libraries and forks a `pul` command for every order on standard input, which saves the start-up time.

Each command has its own home, log and environment, and can be killed like any process. ``die`` names a moment at which the command kills
itself, because no signal from outside can hit an interval of microseconds.
"""

import contextlib
import itertools
import json
import os
import signal
import sys
from pathlib import Path

import mlflow.pyfunc
import mlflow.store.tracking.sqlalchemy_store
from fsspec.implementations.local import LocalFileSystem
from mlflow.tracking import MlflowClient
from prefect.settings import PREFECT_HOME, PREFECT_LOCAL_STORAGE_PATH, temporary_settings

import deployments.cli
import tasks.engine.checkpoints
import tasks.engine.steps
import tasks.operations.lost_runs
from deployments.environment import configure

WRITES = ("create_run", "update_run", "set_tag", "log_batch", "log_inputs", "log_dict", "set_terminated", "create_model_version")


def on_call(owner, name, action, *, after=False):
    """Perform an action before or after every call of a function."""
    function = getattr(owner, name)

    def call(*args, **kwargs):
        if not after:
            action()
        result = function(*args, **kwargs)
        if after:
            action()
        return result

    setattr(owner, name, call)


def arm(moment, number, ending=signal.SIGKILL):
    """Send this process a signal when a moment occurs for the ``number``-th time."""
    calls = itertools.count(1)

    def die():
        if next(calls) == number:
            os.kill(os.getpid(), ending)

    if moment == "step saved":  # a step has been computed and its result saved, the next step is about to begin
        computed = []
        on_call(tasks.engine.steps, "_with_seconds", lambda: computed.append(1), after=True)
        on_call(tasks.engine.steps, "_has_unusable_result", lambda: computed and die())
    elif moment == "step begins":
        on_call(tasks.engine.steps, "_has_unusable_result", die)
    elif moment == "step computed":  # the files are written, but the result is not saved
        on_call(tasks.engine.steps, "_with_seconds", die)
    elif moment == "file written":  # under its temporary name, not renamed yet
        on_call(LocalFileSystem, "mv", die)
    elif moment == "checkpoint":
        on_call(tasks.engine.checkpoints.StepCheckpoint, "_write", die, after=True)
    elif moment == "tracking":
        for name in WRITES:
            on_call(MlflowClient, name, die)
    else:
        raise ValueError(moment)


def run(order):
    """Become the command."""
    os.setsid()
    os.chdir(order["cwd"])
    log = os.open("run.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv = ["pul", *order["argv"]]
    home = configure()
    if order.get("die"):
        arm(*order["die"])
    with temporary_settings({PREFECT_HOME: home / "prefect", PREFECT_LOCAL_STORAGE_PATH: home / "prefect" / "storage"}):
        deployments.cli.main()


def fork(order):
    """Return the id of a new process that becomes the command."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        run(order)
        code = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def prepare(folder):
    """Create the MLflow database that every home starts with."""
    if os.fork() == 0:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        MlflowClient().search_experiments()
        os._exit(0)
    os.wait()


def main():
    """Answer every line: an order with the id of the new process, a process id with its exit code (null while it runs)."""
    prepare(Path(sys.argv[1]))
    codes = {}
    print(json.dumps({"threads": len(list(Path("/proc/self/task").iterdir()))}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if isinstance(order, dict):
            print(fork(order), flush=True)
        else:
            if order not in codes:
                pid, status = os.waitpid(order, os.WNOHANG)
                codes |= {pid: os.waitstatus_to_exitcode(status)} if pid else {}
            print(json.dumps(codes.get(order)), flush=True)


if __name__ == "__main__":
    main()
