"""Runs that are stopped, disturbed or started twice: a sentence, nothing left running, and the next start ends in the same bytes."""

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


@pytest.mark.fault("SIGTERM at every step", "`stopped: pul resume goes on`; closed in MLflow within seconds; the same bytes when resumed")
def test_sigterm(go_on, left, undisturbed, tmp_path, tried):
    for step in STEPS:  # the steps before are cached, so that each start comes to the next one
        command = go_on(tmp_path, die=("step begins", step, signal.SIGTERM))
        assert command.wait() == 130, command.log
        assert last_line(command).startswith("stopped: pul resume goes on"), command.log
        assert {run.info.status for run in left(tmp_path).parents} <= {"FAILED", "KILLED"}
    tried(len(STEPS))
    assert go_on(tmp_path).wait() == 0
    left(tmp_path).assert_like(undisturbed)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.fault(
    "a `pul run` with a server of its own is killed or stopped", "no process is left by it or by the next start; the same run goes on"
)
def test_a_command_with_a_server_of_its_own(driver, arguments, undisturbed, left, tmp_path, processes, ending):
    """The real command: it leaves a server of Prefect behind when it is killed, which the next one stops."""
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
    (name,) = (run.info.run_name for run in left(tmp_path).parents)
    assert subprocess.run([PUL, "resume"], timeout=900, check=False, **options).returncode == 0, (tmp_path / "run.log").read_text()
    assert [run.info.run_name for run in left(tmp_path).parents] == [name]
    left(tmp_path).assert_like(undisturbed)
    assert not processes("PUL_HOME", tmp_path / ".pul")


@pytest.mark.fault(
    "the Prefect server is killed and started again in mid-run",
    "the run goes on, or one line says that it does not answer; then resume goes on",
)
def test_prefects_server_goes_and_comes(prefect_api, go_on, left, undisturbed, tmp_path):
    command = go_on(tmp_path).wait_for("'pretrain' - Finished")
    prefect_api.stop()
    prefect_api.start()
    prefect_api.wait("/api/health")
    if command.wait() != 0:
        assert last_line(command).startswith("pul: Prefect's server does not answer") and "pul resume" in last_line(command), command.log
        command = go_on(tmp_path)
        assert command.wait() == 0, command.log
    left(tmp_path).assert_like(undisturbed)


@pytest.mark.fault("the MLflow server is killed and started again in mid-run", "the run waits for it and goes on")
def test_mlflows_server_goes_and_comes(server, driver, arguments, left, undisturbed, tmp_path):
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
    left(tmp_path).assert_like(undisturbed)


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)], ids=["identical", "different"])
@pytest.mark.fault(
    "two identical, two different runs at once on one artifact root", "both finish; every file is whole; the same bytes as alone"
)
def test_two_at_once(driver, arguments, left, undisturbed, tmp_path, seeds):
    both = [driver.start(tmp_path, *arguments, "--seed", seed) for seed in seeds]
    assert [command.wait() for command in both] == [0, 0], both[0].log
    found = left(tmp_path)
    assert [run.info.status for run in found.parents] == ["FINISHED"] * 2
    assert all(iteration in found.iterations for iteration in undisturbed.iterations)
    assert found.artifacts == undisturbed.artifacts if seeds == (0, 0) else found.artifacts > undisturbed.artifacts
    assert found.all_whole()
    assert not list(found.home.glob("checkpoints/*"))


@pytest.mark.fault(
    "images are replaced while a run is down", "`... changed since run ... began: put it back as it was, or start a new run`"
)
def test_other_images_under_a_run(driver, arguments, tiny_pair, left, undisturbed, tmp_path):
    target = tmp_path / "target"
    shutil.copytree(tiny_pair[1], target)
    given = [str(target) if part == str(tiny_pair[1]) else part for part in arguments]
    assert driver.start(tmp_path, *given, die=("step kept", 1)).wait() == -signal.SIGKILL
    image = next((target / "bounding_box_train").iterdir())
    kept = image.read_bytes()
    Image.new("RGB", (32, 64), "red").save(image)
    command = driver.start(tmp_path, "resume")
    assert command.wait() == 1
    assert "changed since run" in last_line(command) and "put it back" in last_line(command), command.log
    image.write_bytes(kept)
    command = driver.start(tmp_path, "resume")
    assert command.wait() == 0, command.log
    found = left(tmp_path)
    assert found.artifacts > undisturbed.artifacts, "the list of the other images stays beside"
    assert all(name.startswith(("artifacts/images/", "artifacts/labels/")) for name in found.artifacts - undisturbed.artifacts)
    assert found.iterations == undisturbed.iterations


@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed: apt-get install faketime")
@pytest.mark.fault("the clock is set back by a day between a kill and the resume", "the same bytes; nothing waits for yesterday")
def test_the_clock_is_set_back(go_on, left, undisturbed, tmp_path, driver):
    assert go_on(tmp_path, die=("step kept", 4)).wait() == -signal.SIGKILL
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ} | {"HOME": str(tmp_path)}
    environment |= {"PREFECT_API_URL": driver.api, "LD_PRELOAD": str(FAKETIME), "FAKETIME": "-1d"}
    done = subprocess.run([PUL, "resume"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    left(tmp_path).assert_like(undisturbed)
