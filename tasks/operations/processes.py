"""Flow runs in processes of their own, some at once: the threads, memory or death of one of them is no other's concern."""

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

from tasks.engine.compute import resolve_compute
from tasks.engine.progress import step_logger
from tasks.operations.flow_subprocess import PARENT
from tasks.tracking.runs import RESUME, close_run

LOOK_EVERY = 0.2  # seconds
STOP_SECONDS = 15.0


class Job(NamedTuple):
    """A flow run to be: shown as a sub-flow of the flow run that asks for it."""

    name: str
    flow: Flow[..., Any]
    parameters: dict[str, Any]
    log: Path  # takes the process's output
    after: str | None = None  # name of a job that has to be completed first
    environment: dict[str, str] = {}  # noqa: RUF012 never changed


class Ended(NamedTuple):
    """A flow run that has ended, with the one-sentence reason if it is not completed."""

    job: str
    flow_run_id: str | None  # None: it was not started
    reason: str | None


class _Started(NamedTuple):
    job: Job
    flow_run_id: UUID
    process: subprocess.Popen[bytes]


def runs_at_once(device: str | None = None, threads: int | None = None) -> int:
    """Return how many runs of these settings a machine has room for: by its cores, not by its memory; on a GPU, one.

    Args:
        device: as `resolve_compute` takes it.
        threads: of each run; None takes all cores, so that one run fills the machine.
    """
    compute = resolve_compute(device, threads)
    return 1 if compute.device.startswith("cuda") else max(1, resolve_compute(device).threads // compute.threads)


def run_jobs(jobs: Sequence[Job], *, parallel: int) -> Generator[Ended, None, None]:
    """Run flow runs, each in a process of its own, and tell of each when it has ended; closed before its time, it stops them all.

    A job waits for the one it names; if that one fails, it is not started and fails with its reason.

    Args:
        jobs: in the order in which they are to start; a job stands behind the one it waits for.
        parallel: how many at once.
    """
    waiting, running, reasons = list(jobs), list[_Started](), dict[str, str | None]()
    with get_client(sync_client=True) as client:
        try:
            while waiting or running:
                for job in [job for job in waiting if job.after is None or job.after in reasons]:
                    if job.after and (reason := reasons[job.after]):
                        waiting.remove(job)
                        reasons[job.name] = f"{job.after} failed: {reason}"
                        yield Ended(job.name, None, reasons[job.name])
                    elif len(running) < parallel:
                        waiting.remove(job)
                        running.append(_start(client, job))
                for started in [started for started in running if started.process.poll() is not None]:
                    running.remove(started)
                    ended = _look(client, started)
                    reasons[ended.job] = ended.reason
                    yield ended
                time.sleep(LOOK_EVERY)
        finally:
            _stop(client, running)


def _start(client: SyncPrefectClient, job: Job) -> _Started:
    run = client.create_flow_run(job.flow, parameters=job.parameters, state=Pending(), parent_task_run_id=_place(client, job))
    inherited = get_current_settings().to_environment_variables(exclude_unset=True) | os.environ
    environment = {name: value for name, value in inherited.items() if not name.startswith("PREFECT__") and name != RESUME}
    environment |= job.environment | {
        PARENT: str(os.getpid()),
        "PREFECT_API_URL": str(client.api_url).rstrip("/"),  # also where this process has started a server for itself
        "PREFECT__FLOW_RUN_ID": str(run.id),
        "PREFECT__FLOW_ENTRYPOINT": f"{job.flow.fn.__module__}.{job.flow.fn.__name__}",
    }
    job.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "tasks.operations.flow_subprocess"]
    with job.log.open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    step_logger().info("%s: started as flow run %r, log %s", job.name, run.name, job.log)
    return _Started(job, run.id, process)


def _place(client: SyncPrefectClient, job: Job) -> UUID | None:
    """Return the task run that stands for a sub-flow in the flow run that is under way, as Prefect's `run_deployment` makes one."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return None
    stands_for = Task(name=job.name, fn=_place)
    return client.create_task_run(
        task=stands_for, flow_run_id=context.flow_run.id, dynamic_key=str(uuid4()), name=job.name, state=Pending()
    ).id


def _look(client: SyncPrefectClient, started: _Started) -> Ended:
    """Return how a flow run ended whose process has ended; what it left open is closed."""
    code = started.process.returncode
    run_id = str(started.flow_run_id)
    state = client.read_flow_run(started.flow_run_id).state
    if state is None or not state.is_final():
        reason = f"its process was killed by signal {-code} (out of memory?)" if code < 0 else f"its process ended with code {code}"
        gone: Any = Crashed(message=f"Its {reason[4:]}.")
        client.set_flow_run_state(started.flow_run_id, gone, force=True)
    elif state.is_completed():
        step_logger().info("%s: completed", started.job.name)
        return Ended(started.job.name, run_id, None)
    else:
        reason = in_a_sentence(state.message or state.name or "no reason is known")
    close_run(run_id, "FAILED")
    step_logger().error("%s: failed: %s", started.job.name, reason)
    return Ended(started.job.name, run_id, f"{reason}; log {started.job.log.name}" if "process" in reason else reason)


def in_a_sentence(message: str) -> str:
    r"""Return what a flow run's last state says, without Prefect's words around it.

    Example:
        >>> in_a_sentence("Flow run encountered an exception: UnreliableError: only 0 of 6 clusters\n  have two")
        'only 0 of 6 clusters have two'
    """
    words = " ".join(message.removeprefix("Flow run encountered an exception: ").split())
    name, colon, rest = words.partition(": ")
    return rest if colon and rest and name.isidentifier() and name.endswith(("Error", "Exception", "Interrupt")) else words


def _stop(client: SyncPrefectClient, running: list[_Started]) -> None:
    """Stop the processes that are left, first as Ctrl-C does, so that they close what they opened."""
    for started in running:
        if started.process.poll() is None:
            os.killpg(started.process.pid, signal.SIGINT)
    deadline = time.monotonic() + STOP_SECONDS
    for started in running:
        try:
            started.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(started.process.pid, signal.SIGKILL)
            started.process.wait()
        _look(client, started)
