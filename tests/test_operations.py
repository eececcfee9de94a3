"""The commands of docs/operations.md, executed literally: back up a running installation, restore it elsewhere, upgrade it."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def commands(heading):
    """Return the shell scripts in a section of the page."""
    section = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


def run_script(folder, script):
    if not (folder / ".venv").exists():
        (folder / ".venv").symlink_to(BIN.parent)
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    return subprocess.run(["sh", "-euc", script], cwd=folder, env=clean, capture_output=True, text=True, timeout=900, check=False)


def output_of(folder, script):
    """Run a script, which has to succeed, and return what it prints."""
    done = run_script(folder, script)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def flow_runs(folder):
    with sqlite3.connect(folder / ".pul" / "prefect" / "prefect.db") as database:
        return sorted(database.execute("select id, name, state_type from flow_run"))


@pytest.mark.timeout(1800)
def test_a_run_survives_backup_restore_and_upgrade(finished_run, pul_at_finished_run, capsys, tmp_path):
    folder, results_of_run = finished_run.folder, f".venv/bin/pul results {finished_run.name} --json"
    assert pul_at_finished_run("results", finished_run.name, "--json") == 0
    results = json.loads(capsys.readouterr().out)
    assert results["status"] == "finished" and len(results["iterations"]) == 3
    backup, restore = commands("Backing up")
    output_of(folder, backup)

    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (folder / "backup").rename(tmp_path / "backup")
    output_of(tmp_path, restore)
    (upgrade,) = commands("Upgrading")
    output_of(tmp_path, upgrade)
    assert json.loads(output_of(tmp_path, results_of_run)) == results
    assert ("COMPLETED" in {state for _, _, state in flow_runs(tmp_path)}) and flow_runs(tmp_path) == flow_runs(folder)
    assert json.loads(run_script(tmp_path, ".venv/bin/pul doctor --json").stdout)["lost"] == []
