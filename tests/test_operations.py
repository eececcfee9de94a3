"""docs/operations.md, its commands typed as they stand: a run is backed up while all is at work, restored elsewhere, upgraded."""

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
    """Return the shell scripts below a heading of the page."""
    section = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


def typed(folder, script):
    if not (folder / ".venv").exists():
        (folder / ".venv").symlink_to(BIN.parent)
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    return subprocess.run(["sh", "-euc", script], cwd=folder, env=clean, capture_output=True, text=True, timeout=900, check=False)


def ok(folder, script):
    done = typed(folder, script)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def flow_runs(folder):
    with sqlite3.connect(folder / ".pul" / "prefect" / "prefect.db") as database:
        return sorted(database.execute("select id, name, state_type from flow_run"))


@pytest.mark.timeout(1800)
def test_a_run_survives_backup_restore_and_upgrade(up, tiny, tiny_pair, tmp_path):
    folder, _ = up
    parameters = json.dumps(tiny | {"source": str(tiny_pair[0]), "target": str(tiny_pair[1])})
    ok(folder, f".venv/bin/prefect deployment run pul/iterate --params '{parameters}' --watch")
    wanted = json.loads(ok(folder, ".venv/bin/pul results --json"))
    assert wanted["status"] == "finished" and len(wanted["iterations"]) == 3
    backup, restore = commands("Backing up")
    ok(folder, backup)

    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (folder / "backup").rename(tmp_path / "backup")
    ok(tmp_path, restore)
    assert json.loads(ok(tmp_path, ".venv/bin/pul results --json")) == wanted
    (upgrade,) = commands("Upgrading")
    ok(tmp_path, upgrade)
    assert json.loads(ok(tmp_path, ".venv/bin/pul results --json")) == wanted
    assert ("COMPLETED" in {state for _, _, state in flow_runs(tmp_path)}) and flow_runs(tmp_path) == flow_runs(folder)
    assert json.loads(typed(tmp_path, ".venv/bin/pul doctor --json").stdout)["lost"] == []
