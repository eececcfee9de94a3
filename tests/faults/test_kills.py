"""kill -9 at any moment: after a resume, a run ends with the bytes and metrics of an undisturbed run."""

import contextlib
import itertools
import os
import random

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
KILLS = int(os.environ.get("PUL_FAULTS", "2"))
KILLED = -9
MAX_KILLS = 80  # of one run


@pytest.fixture
def rng():
    return random.Random(int(os.environ.get("PUL_FAULTS_SEED", "0")))


def kill_until_done(start_or_resume, folder, moments):
    """Resume a run that kills itself at each of the moments until it finishes; return the number of kills."""
    for kills, die in enumerate(moments):
        assert kills < MAX_KILLS, "the run makes no progress"
        command = start_or_resume(folder, die=die)
        if (code := command.wait()) != KILLED:
            assert code == 0, command.log
            return kills
    raise AssertionError("the run did not finish after the last moment")


@pytest.mark.campaign
@pytest.mark.fault("kill -9 at every boundary of two steps", "the same bytes and metrics as undisturbed; no finished step runs again")
def test_killed_at_every_boundary(start_or_resume, run_folder, undisturbed, tmp_path, tried):
    kills = kill_until_done(start_or_resume, tmp_path, itertools.repeat(("step saved", 1)))
    tried(kills)
    assert kills >= 15, "there is a boundary after every step"
    run_folder(tmp_path).assert_equals(undisturbed)


@pytest.mark.campaign
@pytest.mark.parametrize("moment", ["file written", "step computed", "checkpoint", "tracking"])
@pytest.mark.fault("kill -9 inside a step, between its files, after a checkpoint, during writes to MLflow", "the same bytes and metrics")
def test_killed_inside(start_or_resume, run_folder, undisturbed, tmp_path, tried, rng, moment):
    last = {"file written": 12, "step computed": 8, "checkpoint": 4, "tracking": 40}[moment]
    moments = [(moment, rng.randint(1, last)) for _ in range(KILLS)]
    tried(kill_until_done(start_or_resume, tmp_path, [*moments, None]))
    run_folder(tmp_path).assert_equals(undisturbed)


@pytest.mark.fault("kill -9 at a random moment", "the same bytes and metrics as undisturbed")
def test_killed_at_random_moments(start_or_resume, run_folder, undisturbed, tmp_path, tried, rng):
    """Up to three kills per run, each at a random moment of its remaining time."""
    kills = 0
    for home in itertools.count():
        folder = tmp_path / str(home)
        for _ in range(3):
            command = start_or_resume(folder)
            with contextlib.suppress(AssertionError):
                command.wait(rng.uniform(0, 0.7) * undisturbed.seconds)
            if command.poll() is not None:
                break
            kills += command.kill() == KILLED
        assert start_or_resume(folder).wait() == 0 or "is finished" in command.log, command.log
        run_folder(folder).assert_equals(undisturbed)
        if kills >= KILLS:
            break
    tried(kills)
