"""docs/reliability.md has a row for every test that is marked with a fault, and its command writes the same rows again."""

import json
import runpy
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"


def test_every_fault_has_its_row():
    page = PAGE.read_text(encoding="utf-8")
    command = runpy.run_path(str(Path(__file__).with_name("reliability.py")))
    for place, name, fault, _ in command["marked_tests"]():
        shown = f"| {fault} | [{name.removeprefix('test_')}](../{place}) |"
        assert shown in page, f"{shown} is missing: run make test-faults, or python tests/reliability.py .pul/faults.json"


def test_a_record_becomes_the_table(tmp_path):
    command = runpy.run_path(str(Path(__file__).with_name("reliability.py")))
    place, name, *_ = next(command["marked_tests"]())
    record, page = tmp_path / "faults.json", tmp_path / "page.md"
    record.write_text(json.dumps({f"{place}::{name}": {"tried": 30, "survived": 29, "date": "2026-01-31"}}))
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    command["main"].__globals__["PAGE"] = page
    command["main"](record)
    once = page.read_text(encoding="utf-8")
    command["main"](record)
    assert page.read_text(encoding="utf-8") == once
    assert "| 30, **29 survived** | 2026-01-31 |" in once and once.count("| not tried |") == len(list(command["marked_tests"]())) - 1
