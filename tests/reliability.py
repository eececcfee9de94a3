"""Write the table of docs/reliability.md: every test marked with a fault, with its counts from the record of a campaign.

python tests/reliability.py .pul/faults.json
"""

import ast
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- table: make test-faults -->\n", "<!-- end of the table -->\n"
HEADING = "| fault | tried by | times | last | what is seen |\n|---|---|---|---|---|\n"


def marked_tests():
    """Yield path, name, fault and expected outcome of every test marked with a fault."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for mark in getattr(node, "decorator_list", []):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    yield path.relative_to(ROOT).as_posix(), node.name, *map(ast.literal_eval, mark.args)


def row(path, name, fault, outcome, record):
    """Return a row of the table."""
    entry = record.get(f"{path}::{name}", {})
    tried, survived = entry.get("tried", 0), entry.get("survived", 0)
    times = "not tried" if not tried else f"{tried}" if survived == tried else f"{tried}, **{survived} survived**"
    cells = (fault, f"[{name.removeprefix('test_')}](../{path})", times, entry["date"] if tried else "", outcome)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def main(*records):
    """Replace the table between the two markers on the page."""
    record = {}
    for path in records:
        record |= json.loads(Path(path).read_text(encoding="utf-8"))
    rows = [row(*test, record) for test in marked_tests()]
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{HEADING}{''.join(rows)}{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
