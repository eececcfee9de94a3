"""The progress display: it fits every terminal, nothing else is written to it, and it leaves the terminal and the log as they should be."""

import contextlib
import fcntl
import logging
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect.settings import PREFECT_API_URL
from rich.console import Console

from deployments.display import MAX_WIDTH, _render, _Warnings, can_display, display
from tasks.engine.status import Activity, Count, Status, activity, status

PUL = Path(sys.executable).with_name("pul")
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def resize(terminal, columns, lines):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@pytest.fixture(scope="module")
def rendered():
    """A function that returns the lines of a display on a terminal of a size."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as file:
        console = Console(file=file)

        def render(status, columns, lines):
            resize(slave, columns, lines)
            display = _render(console, status, ".pul/logs/run.log")
            return ["".join(segment.text for segment in line).rstrip() for line in console.render_lines(display)]

        yield render
    os.close(master)


def counted(done, total, note="", is_finished=False):
    count = Count("train", total, "images")
    count.done, count.note, count.is_finished = done, note, is_finished
    count.started -= 10
    return count


@pytest.fixture
def example():
    """The second iteration of a run is being trained."""
    done = [Activity(name, seconds=3.0) for name in ("pretrain", "cluster-1", "fine-tune-1", "evaluate-1")]
    cached = Activity("extract-features-1-train", outcome="cached", seconds=0.1)
    current = Activity("fine-tune-2", count=counted(400, 1000, ", epoch 2/4, loss 1.234"))
    metrics = {"reliable_set_size": 5123, "num_clusters": 711, "rank_1": 0.456, "mAP": 0.3, "seconds": 754.2}
    iterations = {0: {"rank_1": 0.3, "mAP": 0.2, "seconds": 61.0}} | dict.fromkeys(range(1, 30), metrics)
    return Status("amber-fox-1f2e3d4c", [*done, cached, current], iterations)


@pytest.mark.parametrize(("columns", "lines"), [(200, 60), (100, 40), (80, 24), (60, 20)])
def test_the_display_shows_the_step_its_bar_speed_time_left_and_the_iterations(rendered, example, columns, lines):
    text = rendered(example, columns, lines)
    assert len(text) < lines
    (step,) = (number for number, line in enumerate(text) if re.search(r"[|/\\-] fine-tune-2 +400/1,000 images +0\.\d s$", line))
    assert re.fullmatch(r"  ━+─+ +40 % +40 images/s +0:15 left", text[step + 1])
    assert text[step + 2] == "  epoch 2/4, loss 1.234"
    assert re.fullmatch(r"  extract-features-1-train +cached", text[step - 1])
    titles = text.index(text[step + 4])
    assert text[titles].split() == ["iteration", "reliable", "clusters", "rank-1", "mAP", "seconds"]
    assert text[-4].split() == ["29", "5,123", "711", "45.6", "%", "30.0", "%", "754"]
    assert text[-2:] == ["  run amber-fox-1f2e3d4c", "  log .pul/logs/run.log"]


names = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=90)
counts = st.none() | st.builds(counted, st.integers(0, 10**7), st.integers(0, 10**7), names, st.booleans())
activities = st.builds(
    Activity,
    names,
    outcome=st.sampled_from(["done", "cached", "failed", "stopped"]),
    seconds=st.none() | st.floats(0, 10**6, allow_subnormal=False),
    count=counts,
)
metrics = st.dictionaries(
    st.sampled_from(["reliable_set_size", "num_clusters", "rank_1", "mAP", "seconds"]), st.floats(0, 10**7, allow_subnormal=False)
)
statuses = st.builds(Status, names, st.lists(activities, max_size=12), st.dictionaries(st.integers(0, 99), metrics, max_size=60))


@given(status=statuses, columns=st.integers(20, 250), lines=st.integers(12, 80))
@settings(max_examples=300, deadline=None)
def test_a_display_of_anything_fits_the_terminal(rendered, status, columns, lines):
    text = rendered(status, columns, lines)
    assert len(text) < lines
    assert max(map(len, text)) <= columns
    if (current := status.current()) and current.outcome in ("done", "cached") and columns > MAX_WIDTH:
        assert any(line[2:].startswith(current.name[:10]) for line in text)


def test_a_terminal_without_a_size_counts_as_80_by_24(rendered, example):
    assert rendered(example, 0, 0) == rendered(example, 80, 24)


def test_a_failed_step_is_the_last_line_and_has_no_bar(rendered, example):
    example.activities[-1].outcome, example.activities[-1].seconds = "failed", 75.0
    text = rendered(example, 80, 24)
    assert any(re.fullmatch(r"  fine-tune-2 +400 images  failed after 1:15", line) for line in text)
    assert "━" not in "".join(text)


@pytest.mark.parametrize(
    ("environment", "is_shown"),
    [
        ({"TERM": "xterm-256color"}, True),
        ({"TERM": "xterm", "CI": "false"}, True),
        ({"TERM": "xterm", "CI": ""}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": ""}, False),
        ({"TERM": "xterm", "CI": "true"}, False),
        ({"TERM": "xterm", "CI": "1"}, False),
    ],
)
def test_the_display_needs_a_terminal_that_a_person_sees(monkeypatch, environment, is_shown):
    monkeypatch.delenv("CI", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert can_display() == is_shown
    os.close(master)
    with Path(os.devnull).open("w") as no_terminal:
        monkeypatch.setattr(sys, "stderr", no_terminal)
        assert not can_display()


def test_without_a_terminal_lines_for_the_user_are_printed_on_stderr(home, capsys):
    with display("run", verbose=False) as screen:
        screen.say("paper: 36 images")
    assert (screen.log, capsys.readouterr()) == (None, ("", "paper: 36 images\n"))
    assert not (home / "logs").exists()


def test_the_first_warnings_of_the_steps_are_shown():
    from deployments.display import WARNINGS_SHOWN, Screen

    lines = []
    handler = _Warnings(Screen(lines.append, "run.log"))

    def log(name, level, message):
        handler.handle(logging.LogRecord(name, level, "", 0, message, (), None))

    log("prefect.task_runs", logging.WARNING, "skipped a\x1b[2J.jpg")
    assert lines == ["warning: skipped a\\x1b[2J.jpg"]
    log("prefect.events.clients", logging.WARNING, "of a library")
    log("prefect.flow_runs", logging.ERROR, "reported when the command ends")
    assert len(lines) == 1
    for _ in range(100):
        log("pul", logging.WARNING, "again")
    assert len(lines) == WARNINGS_SHOWN + 1 and lines[-1].endswith("see run.log")


def test_units_of_an_earlier_process_do_not_count_for_the_speed():
    from tasks.engine.progress import Progress

    progress = Progress("train", 1000, "images")
    progress.started -= 10
    progress.restore(800)
    assert progress.describe(progress.started + 10) == "800/1,000 images"
    progress.advance(100)
    assert progress.describe(progress.started + 10) == "900/1,000 images, 10 images/s, 0:10 left"


def test_units_that_take_long_have_a_time_each_instead_of_a_speed_of_zero():
    from tasks.engine.progress import Progress

    progress = Progress("write", 7, "files")
    progress.advance(1)
    assert progress.describe(progress.started + 40) == "1/7 files, 40 s each, 4:00 left"


def test_an_activity_is_done_failed_or_stopped(monkeypatch):
    monkeypatch.setattr(status, "activities", [])
    with activity("outer"):
        for error in (None, ValueError, KeyboardInterrupt):
            with contextlib.suppress(ValueError, KeyboardInterrupt), activity("inner") as inner:
                assert status.current() is inner
                if error:
                    raise error
        assert status.current() is status.activities[0]
    assert [step.outcome for step in status.activities] == ["done", "done", "failed", "stopped"]
    assert status.current() is None


def test_a_step_whose_result_is_stored_is_shown_as_cached(prefect_server, home, monkeypatch, market, tmp_path):
    from prefect import flow

    from tasks.decode import decode
    from tasks.index import index

    monkeypatch.setattr(status, "activities", [])
    folder = str(market(tmp_path / "data", range(1, 3)))

    @flow
    def decode_twice():
        images = index(folder, "target")
        for _ in range(2):
            decode(images, split="train", height=64, width=32)

    decode_twice()
    shown = [(step.name, step.outcome, step.count and step.count.done) for step in status.activities]
    assert shown == [("index-target", "done", 12), ("decode-train-64x32", "done", 12), ("decode-train-64x32", "cached", None)]


def test_drawn_people_are_reported_when_they_are_drawn_only(home, monkeypatch, caplog):
    from functools import partial

    from pul_core.synthetic.people import Sizes
    from tasks import index

    sizes = Sizes(train_identities=2, train_images=4, test_identities=2, queries=2, gallery_images=8)
    monkeypatch.setattr(index, "synthesize_domain", partial(index.synthesize_domain, sizes=sizes, processes=1))
    monkeypatch.setattr(status, "activities", [])
    with caplog.at_level(logging.INFO, "pul"):
        folder = index.dataset_root("synthetic:7/source")
        assert re.fullmatch(r"draw synthetic:7/source: 14 images in \d\.\d s", caplog.messages[-1])
        assert [(step.name, step.outcome, step.count.done) for step in status.activities] == [("draw synthetic:7/source", "done", 14)]
        caplog.clear()
        assert index.dataset_root("synthetic:7/source") == folder
    assert not caplog.messages and len(status.activities) == 1


class Terminal:
    """A `pul` command that is started in a terminal."""

    def __init__(self, folder, *arguments, pul=(PUL,), columns=100, lines=40, **environment):
        self.master, slave = pty.openpty()
        resize(slave, columns, lines)
        self.before = termios.tcgetattr(slave)
        self.output = ""
        inherited = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        clean = inherited | {"HOME": str(folder), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **environment}
        command = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, *map(str, pul), *map(str, arguments)],
            cwd=folder,
            env=clean,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        self.slave = slave

    def read(self, until=None, seconds=400):
        """Read until a text is printed or the command ends; return all output so far."""
        deadline = time.monotonic() + seconds
        while until is None or until not in self.output:
            assert time.monotonic() < deadline, self.output
            if select.select([self.master], [], [], 0.2)[0]:
                self.output += os.read(self.master, 65536).decode(errors="replace")
            elif self.process.poll() is not None:
                assert until is None, self.output
                break
        return self.output

    def press_ctrl_c(self):
        os.write(self.master, b"\x03")

    def end(self):
        """Wait for the end, and return the exit code and the lines that remain on the terminal; check that the terminal is as before."""
        self.read()
        assert self.output.rfind(SHOW_CURSOR) >= self.output.rfind(HIDE_CURSOR)
        assert termios.tcgetattr(self.slave) == self.before
        os.close(self.slave)
        os.close(self.master)
        return self.process.wait(10), self.output.replace("\r", "").split("\n")


def test_invalid_input_ends_the_display_with_one_line(tmp_path):
    terminal = Terminal(tmp_path, "run", "--target", "nowhere")
    code, lines = terminal.end()
    assert code == 1 and re.search(r"pul: \S+/nowhere is not a folder", lines[-2]), terminal.output
    assert "check the data" in terminal.output and "Traceback" not in terminal.output
    assert not list((tmp_path / ".pul" / "logs").iterdir()), "there was nothing to log"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, mlflow_database):
    """A working directory; later commands find the steps of earlier ones in its cache."""
    folder = tmp_path_factory.mktemp("terminal")
    mlflow_database(folder / ".pul")
    return folder


# `pul` with a training that waits after its second epoch, so that it is not done before it is stopped.
WAITING = """
import time
from deployments.environment import configure
configure()
from deployments.cli import main
from tasks import training

def wait_after_two_epochs(*arguments, train=training.train, **options):
    for epoch in train(*arguments, **options):
        yield epoch
        if epoch.epoch == 2:
            time.sleep(300)

training.train = wait_after_two_epochs
main()
"""


@pytest.mark.slow
def test_a_run_in_a_terminal_is_stopped_and_resumed(folder, tiny_pair, tiny_options):
    epochs = "--set=pretraining.epochs=1", "--set=fine_tuning.epochs=3"
    options = ["--source", tiny_pair[0], "--target", tiny_pair[1], *tiny_options, *epochs]
    started = Terminal(folder, "run", *options, pul=(sys.executable, "-P", "-c", WAITING), columns=80, lines=24)
    started.read("epoch 2/3")
    resize(started.master, 60, 20)
    started.press_ctrl_c()
    code, lines = started.end()
    assert code == 130 and "stopped: pul resume continues the run" in lines[-2], started.output
    assert "stopped after" in started.output

    resumed = Terminal(folder, "resume", columns=60, lines=20, NO_COLOR="1")
    code, lines = resumed.end()
    assert code == 0, resumed.output
    assert "cached" in resumed.output and "images/s" in resumed.output
    (name,) = (path.name for path in (folder / ".pul" / "runs").iterdir())
    printed = "\n".join(lines[lines.index("iteration | reliable | clusters |  rank-1 |     mAP | seconds") :])
    for text in (f"run {name}, finished, stopped: limit", "max_iterations was reached", f"pul report {name} ", f"pul export {name} "):
        assert text in printed
    log = folder / re.search(r"^log (\S+)$", printed, re.MULTILINE)[1]
    assert "Task run 'fine-tune-2' - Finished in state Completed()" in log.read_text()
    for output in (started.output, resumed.output):
        for noise in ("Task run", "| INFO", "alembic", "mlflow.store", "temporary server", "Traceback"):
            assert noise not in output, output
    assert not re.search(r"\x1b\[\d*3\dm", resumed.output), "a colour despite NO_COLOR"


@pytest.mark.slow
@pytest.mark.parametrize(("option", "environment"), [(["--verbose"], {}), ([], {"CI": "true"})])
def test_the_log_is_printed_if_asked_for(folder, prefect_server, tiny_pair, tiny_options, option, environment):
    """The server is that of the session; the temporary one of a command is in the test above."""
    arguments = ["--source", tiny_pair[0], "--target", tiny_pair[1], *tiny_options, *option]
    terminal = Terminal(folder, "run", *arguments, PREFECT_API_URL=PREFECT_API_URL.value(), **environment)
    code, _ = terminal.end()
    assert code == 0, terminal.output
    assert HIDE_CURSOR not in terminal.output and "finish-run" in terminal.output and "log .pul" not in terminal.output
    assert "alembic" not in terminal.output and "mlflow.store" not in terminal.output
