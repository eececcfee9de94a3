"""`pul report` and `pul compare` without a run to show: what they refuse, in one sentence, and what they leave alone."""

import pytest

from pul_core.errors import UserError
from tasks.report import page
from tasks.report.page import render
from tasks.report.publish import write_report
from tasks.report.views import SectionView, TableView


def test_without_the_extra_the_command_says_what_to_install(pul_here, monkeypatch):
    monkeypatch.setattr(page, "find_spec", lambda name: None if name == "vl_convert" else object())
    expected = "pul: the report requires the package vl-convert-python: install the extra with pip install 'pul-reid[report]'"
    assert pul_here("report") == expected
    assert pul_here("compare", "a", "b", "--out", "x.html") == expected


def test_a_run_that_does_not_exist_is_reported_in_one_line(pul_here, home):
    assert pul_here("report").startswith("pul: there are no runs yet")
    assert pul_here("report", "nobody").startswith("pul: there is no run 'nobody'")
    assert pul_here("compare", "nobody", "else").startswith("pul: there is no run 'nobody'")
    assert not list(home.rglob("*.html"))


def test_a_file_that_is_not_a_report_is_not_overwritten(tmp_path):
    file = tmp_path / "mine.html"
    file.write_text("<p>mine")
    with pytest.raises(UserError, match="exists and is not a report"):
        write_report(file, "page")
    assert file.read_text() == "<p>mine" and list(tmp_path.iterdir()) == [file]


def test_names_of_files_cannot_become_markup(tmp_path):
    name = "<script>alert(1)</script>.jpg"
    section = SectionView(name="s", title=name, tables=[TableView(["file"], [[name]], note=name)], notes=[name])
    text = render(name, section, [])
    assert "<script>alert" not in text and text.count("&lt;script&gt;alert(1)&lt;/script&gt;.jpg") == 6
    write_report(tmp_path / "report.html", text)
    write_report(tmp_path / "report.html", text)  # a report may be replaced by a newer one


def test_what_is_in_backticks_is_shown_as_code_and_escaped():
    section = SectionView(name="s", title="S", notes=["Run `pul report <RUN>`."])
    assert "Run <code>pul report &lt;RUN&gt;</code>." in render("t", section, [])
