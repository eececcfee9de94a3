"""kill -9 anywhere: started again, a run ends in the bytes and metrics of one that nobody disturbed."""

import contextlib
import itertools
import os
import random

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
KILLS = int(os.environ.get("PUL_FAULTS", "2"))
KILLED = -9
LIMIT = 80  # kills of one run


@pytest.fixture
def chance():
    return random.Random(int(os.environ.get("PUL_FAULTS_SEED", "0")))


def kill_until_done(go_on, folder, moments):
    """Go on with a run that kills itself at each of the moments, until it is done; return how often it died."""
    for kills, die in enumerate(moments):
        assert kills < LIMIT, "no kill brings it further"
        command = go_on(folder, die=die)
        if (code := command.wait()) != KILLED:
            assert code == 0, command.log
            return kills
    raise AssertionError("it was never let alone")


@pytest.mark.campaign
@pytest.mark.fault("kill -9 at every boundary of two steps", "the same bytes and metrics as undisturbed; no finished step runs again")
def test_killed_at_every_boundary(go_on, left, undisturbed, tmp_path, tried):
    kills = kill_until_done(go_on, tmp_path, itertools.repeat(("step kept", 1)))
    tried(kills)
    assert kills >= 15, "each step has a boundary"
    left(tmp_path).assert_like(undisturbed)


@pytest.mark.campaign
@pytest.mark.parametrize("moment", ["file written", "step computed", "checkpoint", "tracking"])
@pytest.mark.fault("kill -9 inside a step, between its files, after a checkpoint, while MLflow is told", "the same bytes and metrics")
def test_killed_inside(go_on, left, undisturbed, tmp_path, tried, chance, moment):
    furthest = {"file written": 12, "step computed": 8, "checkpoint": 4, "tracking": 40}[moment]
    moments = [(moment, chance.randint(1, furthest)) for _ in range(KILLS)]
    tried(kill_until_done(go_on, tmp_path, [*moments, None]))
    left(tmp_path).assert_like(undisturbed)


@pytest.mark.fault("kill -9 at a random moment", "the same bytes and metrics as undisturbed")
def test_killed_at_random_moments(go_on, left, undisturbed, tmp_path, tried, chance):
    """Up to three kills a run, each of them somewhere in what is left of it."""
    kills = 0
    for home in itertools.count():
        folder = tmp_path / str(home)
        for _ in range(3):
            command = go_on(folder)
            with contextlib.suppress(AssertionError):
                command.wait(chance.uniform(0, 0.7) * undisturbed.seconds)
            if command.poll() is not None:
                break
            kills += command.kill() == KILLED
        assert go_on(folder).wait() == 0 or "is finished" in command.log, command.log
        left(folder).assert_like(undisturbed)
        if kills >= KILLS:
            break
    tried(kills)
