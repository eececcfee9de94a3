"""docs/reliability.md has a row for every test marked with a fault, and its generator reproduces the rows."""

import json
import runpy
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"


def test_every_fault_has_a_row():
    page = PAGE.read_text(encoding="utf-8")
    generator = runpy.run_path(str(Path(__file__).with_name("reliability.py")))
    for path, name, fault, _ in generator["marked_tests"]():
        row = f"| {fault} | [{name.removeprefix('test_')}](../{path}) |"
        assert row in page, f"{row} is missing: run make test-faults, or python tests/reliability.py .pul/faults.json"


def test_the_table_is_written_from_a_record(tmp_path):
    generator = runpy.run_path(str(Path(__file__).with_name("reliability.py")))
    path, name, *_ = next(generator["marked_tests"]())
    record, page = tmp_path / "faults.json", tmp_path / "page.md"
    record.write_text(json.dumps({f"{path}::{name}": {"tried": 30, "survived": 29, "date": "2026-01-31"}}))
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    generator["main"].__globals__["PAGE"] = page
    generator["main"](record)
    once = page.read_text(encoding="utf-8")
    generator["main"](record)
    assert page.read_text(encoding="utf-8") == once
    assert "| 30, **29 survived** | 2026-01-31 |" in once and once.count("| not tried |") == len(list(generator["marked_tests"]())) - 1
