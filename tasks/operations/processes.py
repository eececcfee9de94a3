"""Flow runs in subprocesses, several at a time; each has its own threads and memory, and a crash affects no other run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from prefect import Task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.context import FlowRunContext
from prefect.flows import Flow
from prefect.settings import get_current_settings
from prefect.states import Crashed, Pending

from pul_core.settings import Machine
from tasks.engine.compute import available_cores, resolve_compute
from tasks.engine.progress import step_logger
from tasks.operations.flow_subprocess import PARENT_PID
from tasks.tracking.runs import RESUME, close_run

POLL_SECONDS = 0.2
STOP_TIMEOUT_SECONDS = 15.0


class Job(NamedTuple):
    """A flow run to start; Prefect shows it as a sub-flow of the current flow run.

    ``log`` is the file for the output of the process; ``after`` is the name of a job that has to complete first.
    """

    name: str
    flow: Flow[..., Any]
    parameters: dict[str, Any]
    log: Path
    after: str | None = None
    environment: dict[str, str] = {}  # noqa: RUF012 never modified


class JobResult(NamedTuple):
    """How a job ended: ``flow_run_id`` is None if it was not started, and ``error``, one sentence, is None if it completed."""

    job: str
    flow_run_id: str | None
    error: str | None


class _FlowSubprocess(NamedTuple):
    job: Job
    flow_run_id: UUID
    process: subprocess.Popen[bytes]


def runs_at_once(machine: Machine) -> int:
    """Return how many runs the machine has cores for, regardless of its memory; on a GPU, one.

    Args:
        machine: of each run; without a number of threads a run uses all cores.
    """
    compute = resolve_compute(machine).training
    return 1 if compute.device.startswith("cuda") else max(1, available_cores() // compute.threads)


def run_jobs(jobs: Sequence[Job], *, parallel: int) -> Generator[JobResult, None, None]:
    """Execute flow runs in subprocesses and yield the result of each as soon as it ends; closing the generator stops the rest.

    A job whose ``after`` job fails is not started and fails too.

    Args:
        jobs: in the order in which they start; a job comes after the one it waits for.
        parallel: maximum number of processes at a time.
    """
    waiting, running, errors = list(jobs), list[_FlowSubprocess](), dict[str, str | None]()
    with get_client(sync_client=True) as client:
        try:
            while waiting or running:
                for job in [job for job in waiting if job.after is None or job.after in errors]:
                    if job.after and (error := errors[job.after]):
                        waiting.remove(job)
                        errors[job.name] = f"{job.after} failed: {error}"
                        yield JobResult(job.name, None, errors[job.name])
                    elif len(running) < parallel:
                        waiting.remove(job)
                        running.append(_start(client, job))
                for flow_subprocess in [each for each in running if each.process.poll() is not None]:
                    running.remove(flow_subprocess)
                    result = _final_state(client, flow_subprocess)
                    errors[result.job] = result.error
                    yield result
                time.sleep(POLL_SECONDS)
        finally:
            _stop(client, running)


def _start(client: SyncPrefectClient, job: Job) -> _FlowSubprocess:
    parent_task_run_id = _parent_task_run(client, job)
    run = client.create_flow_run(job.flow, parameters=job.parameters, state=Pending(), parent_task_run_id=parent_task_run_id)
    inherited = get_current_settings().to_environment_variables(exclude_unset=True) | os.environ
    environment = {name: value for name, value in inherited.items() if not name.startswith("PREFECT__") and name != RESUME}
    environment |= job.environment | {
        PARENT_PID: str(os.getpid()),
        "PREFECT_API_URL": str(client.api_url).rstrip("/"),  # also that of a temporary server of this process
        "PREFECT__FLOW_RUN_ID": str(run.id),
        "PREFECT__FLOW_ENTRYPOINT": f"{job.flow.fn.__module__}.{job.flow.fn.__name__}",
    }
    job.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "tasks.operations.flow_subprocess"]
    with job.log.open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    step_logger().info("%s: started as flow run %r, log %s", job.name, run.name, job.log)
    return _FlowSubprocess(job, run.id, process)


def _parent_task_run(client: SyncPrefectClient, job: Job) -> UUID | None:
    """Create the task run that represents a sub-flow in the current flow run, as Prefect's `run_deployment` does."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return None
    task = Task(name=job.name, fn=_parent_task_run)
    return client.create_task_run(task=task, flow_run_id=context.flow_run.id, dynamic_key=str(uuid4()), name=job.name, state=Pending()).id


def _final_state(client: SyncPrefectClient, flow_subprocess: _FlowSubprocess) -> JobResult:
    """Return the result of a flow run whose process has ended, and close what the process left open in Prefect and MLflow."""
    job, run_id, code = flow_subprocess.job, flow_subprocess.flow_run_id, flow_subprocess.process.returncode
    state = client.read_flow_run(run_id).state
    if state is None or not state.is_final():
        error = f"its process was killed by signal {-code} (out of memory?)" if code < 0 else f"its process ended with code {code}"
        crashed: Any = Crashed(message=f"{error.capitalize()}.")
        client.set_flow_run_state(run_id, crashed, force=True)
        error += f"; log {job.log.name}"
    elif state.is_completed():
        step_logger().info("%s: completed", job.name)
        return JobResult(job.name, str(run_id), None)
    else:
        error = failure_reason(state.message or state.name or "unknown reason")
    close_run(str(run_id), "FAILED")
    step_logger().error("%s: failed: %s", job.name, error)
    return JobResult(job.name, str(run_id), error)


def failure_reason(message: str) -> str:
    r"""Return the message of a failed flow run's state on one line, without Prefect's prefix and the name of the exception.

    Example:
        >>> failure_reason("Flow run encountered an exception: UnreliableError: only 0 of 6 clusters\n  have two")
        'only 0 of 6 clusters have two'
    """
    words = " ".join(message.removeprefix("Flow run encountered an exception: ").split())
    name, colon, rest = words.partition(": ")
    return rest if colon and rest and name.isidentifier() and name.endswith(("Error", "Exception", "Interrupt")) else words


def _stop(client: SyncPrefectClient, running: list[_FlowSubprocess]) -> None:
    """Stop the remaining processes, first with SIGINT so that they can close their runs, then with SIGKILL."""
    for flow_subprocess in running:
        if flow_subprocess.process.poll() is None:
            os.killpg(flow_subprocess.process.pid, signal.SIGINT)
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    for flow_subprocess in running:
        try:
            flow_subprocess.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(flow_subprocess.process.pid, signal.SIGKILL)
            flow_subprocess.process.wait()
        _final_state(client, flow_subprocess)
