"""The commands of docs/tutorial.md, executed in order, with fewer and smaller images of drawn people than in the tutorial."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pul_core.synthetic.people import Sizes

ROOT = Path(__file__).parents[1]
SMALL = {
    "source": Sizes(train_identities=8, train_images=64, test_identities=4, queries=8, gallery_images=24),
    "target": Sizes(train_identities=8, train_images=96, test_identities=4, queries=8, gallery_images=24),
}
pytestmark = pytest.mark.slow


def commands(page):
    """Return the commands of the page; a loop or a script of several lines is one command."""
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL):
        yield from [block] if block.startswith(("for ", "python ")) else block.replace("\\\n", "").splitlines()


def test_every_command_of_the_tutorial_runs(pul_here, home, prefect_server, monkeypatch, capsys):
    monkeypatch.setattr("tasks.data.synthesize.SIZES", SMALL)
    (home / ".pul").symlink_to(home)  # the default home of a command
    run, done = None, []
    for command in commands("tutorial.md"):
        if command.startswith("pul "):
            arguments = shlex.split(command)[1:]
            if arguments[0] == "run":
                arguments += ["--threads=1", "--size=64x32", "--set", "pretraining.epochs=1", "--set", "fine_tuning.epochs=1"]
            code = pul_here(*(argument.replace("RUN", run or "RUN") for argument in arguments))
            output = capsys.readouterr().out
            assert code in ((0, 1) if arguments[:2] == ["data", "check"] else (0,)), f"{command}: {code}\n{output}"
            if match := re.search(r"^run (\S+), finished", output, re.MULTILINE):
                run = match[1]
        else:
            script = command.replace("python ", f"{sys.executable} ")
            output = subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=True).stdout
        done.append((command, output))
    assert (
        len(done) == 13 and Path("contact.png").exists() and Path("exported", "export.json").exists() and Path("features.parquet").exists()
    )
    assert re.match(r"\d+ images, \d+ classes\n", done[-7][1])
    scored = [output for command, output in done[-6:-3]]  # before, before with statistics, after
    assert all("8 queries scored" in output for output in scored) and len(set(scored)) == 3
