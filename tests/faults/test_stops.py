"""Runs that are stopped, disturbed or started twice: a clear message, no process left behind, and the same bytes after a resume."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.campaign, pytest.mark.timeout(3600)]
PUL = Path(sys.executable).with_name("pul")
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
STEPS = range(1, 23, 1 if "PUL_FAULTS" in os.environ else 9)


def last_line(command):
    return command.log.strip().splitlines()[-1]


@pytest.mark.fault(
    "SIGTERM at every step", "`stopped: pul resume continues the run`; closed in MLflow within seconds; the same bytes after a resume"
)
def test_sigterm(start_or_resume, run_folder, undisturbed, tmp_path, tried):
    for step in STEPS:  # the earlier steps are cached, so each start reaches the next one
        command = start_or_resume(tmp_path, die=("step begins", step, signal.SIGTERM))
        assert command.wait() == 130, command.log
        assert last_line(command).startswith("stopped: pul resume continues the run"), command.log
        assert {run.info.status for run in run_folder(tmp_path).parents} <= {"FAILED", "KILLED"}
    tried(len(STEPS))
    assert start_or_resume(tmp_path).wait() == 0
    run_folder(tmp_path).assert_equals(undisturbed)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.fault(
    "a `pul run` with its own Prefect server is killed or stopped",
    "no process is left behind by it or the next command; the same run is resumed",
)
def test_a_command_with_its_own_server(driver, arguments, undisturbed, run_folder, tmp_path, processes, ending):
    """A killed `pul run` leaves its Prefect server behind, which the next command stops."""
    (tmp_path / ".pul").mkdir()
    shutil.copy(driver.folder / "mlflow.db", tmp_path / ".pul")
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ} | {"HOME": str(tmp_path)}
    log = (tmp_path / "run.log").open("wb")
    options = {"cwd": tmp_path, "env": environment, "stdout": log, "stderr": log}
    process = subprocess.Popen([PUL, *arguments], start_new_session=True, **options)
    while b"'track-run' - Finished" not in (tmp_path / "run.log").read_bytes():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
        assert process.returncode is None, (tmp_path / "run.log").read_text()
    process.send_signal(ending)
    process.wait(60)
    (name,) = (run.info.run_name for run in run_folder(tmp_path).parents)
    assert subprocess.run([PUL, "resume"], timeout=900, check=False, **options).returncode == 0, (tmp_path / "run.log").read_text()
    assert [run.info.run_name for run in run_folder(tmp_path).parents] == [name]
    run_folder(tmp_path).assert_equals(undisturbed)
    assert not processes("PUL_HOME", tmp_path / ".pul")


@pytest.mark.fault(
    "the Prefect server is killed and restarted during a run",
    "the run continues, or one line says that the server does not answer and a resume continues the run",
)
def test_the_prefect_server_is_restarted(prefect_api, start_or_resume, run_folder, undisturbed, tmp_path):
    command = start_or_resume(tmp_path).wait_for("'pretrain' - Finished")
    prefect_api.stop()
    prefect_api.start()
    prefect_api.wait("/api/health")
    if command.wait() != 0:
        assert last_line(command).startswith("pul: Prefect's server does not answer") and "pul resume" in last_line(command), command.log
        command = start_or_resume(tmp_path)
        assert command.wait() == 0, command.log
    run_folder(tmp_path).assert_equals(undisturbed)


@pytest.mark.fault("the MLflow server is killed and restarted during a run", "the run waits for it and continues")
def test_the_mlflow_server_is_restarted(server, driver, arguments, run_folder, undisturbed, tmp_path):
    home = tmp_path / ".pul"
    home.mkdir()
    shutil.copy(driver.folder / "mlflow.db", home)
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", "{port}", "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--default-artifact-root", home / "mlartifacts"]
    mlflow = server(tmp_path, [PUL.with_name("mlflow"), *command[1:], *store], MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false").wait("/health")
    command = driver.start(tmp_path, *arguments, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{mlflow.port}").wait_for("'fine-tune-1' - Finished")
    mlflow.stop()
    mlflow.start()
    assert command.wait() == 0, command.log
    run_folder(tmp_path).assert_equals(undisturbed)


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)], ids=["identical", "different"])
@pytest.mark.fault(
    "two identical or two different runs at the same time on one artifact root",
    "both finish; every file is intact; the same bytes as alone",
)
def test_two_runs_at_the_same_time(driver, arguments, run_folder, undisturbed, tmp_path, seeds):
    commands = [driver.start(tmp_path, *arguments, "--seed", seed) for seed in seeds]
    assert [command.wait() for command in commands] == [0, 0], commands[0].log
    folder = run_folder(tmp_path)
    assert [run.info.status for run in folder.parents] == ["FINISHED"] * 2
    assert all(iteration in folder.iterations for iteration in undisturbed.iterations)
    assert folder.artifacts == undisturbed.artifacts if seeds == (0, 0) else folder.artifacts > undisturbed.artifacts
    assert folder.all_intact()
    assert not list(folder.home.glob("checkpoints/*"))


@pytest.mark.fault(
    "images are changed between a kill and the resume", "`... has changed since run ... began: put it back as it was, or start a new run`"
)
def test_images_are_changed_before_a_resume(driver, arguments, tiny_pair, run_folder, undisturbed, tmp_path):
    target = tmp_path / "target"
    shutil.copytree(tiny_pair[1], target)
    arguments = [str(target) if part == str(tiny_pair[1]) else part for part in arguments]
    assert driver.start(tmp_path, *arguments, die=("step saved", 1)).wait() == -signal.SIGKILL
    image = next((target / "bounding_box_train").iterdir())
    content = image.read_bytes()
    Image.new("RGB", (32, 64), "red").save(image)
    command = driver.start(tmp_path, "resume")
    assert command.wait() == 1
    assert "changed since run" in last_line(command) and "put it back" in last_line(command), command.log
    image.write_bytes(content)
    command = driver.start(tmp_path, "resume")
    assert command.wait() == 0, command.log
    folder = run_folder(tmp_path)
    assert folder.artifacts > undisturbed.artifacts, "the index of the changed images is an additional artifact"
    assert all(name.startswith(("artifacts/images/", "artifacts/labels/")) for name in folder.artifacts - undisturbed.artifacts)
    assert folder.iterations == undisturbed.iterations


@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed: apt-get install faketime")
@pytest.mark.fault("the clock is set back by a day between a kill and the resume", "the same bytes; nothing waits for the old time")
def test_the_clock_is_set_back(start_or_resume, run_folder, undisturbed, tmp_path, driver):
    assert start_or_resume(tmp_path, die=("step saved", 4)).wait() == -signal.SIGKILL
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ} | {"HOME": str(tmp_path)}
    environment |= {"PREFECT_API_URL": driver.api, "LD_PRELOAD": str(FAKETIME), "FAKETIME": "-1d"}
    done = subprocess.run([PUL, "resume"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    run_folder(tmp_path).assert_equals(undisturbed)
