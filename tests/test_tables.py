"""Console tables are plain text, neither truncated to the terminal nor coloured."""

from deployments.tables import render_table


def test_a_table_is_plain_text_of_any_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    wide = "x" * 300
    assert render_table(["setting", "rank-1"], [[f"[bold]{wide}", "51.2 ± 3.1"], ["-", "-"]], left=["setting"]).splitlines() == [
        f"setting{' ' * 299} |     rank-1",
        f"{'-' * 307}+-----------",
        f"[bold]{wide} | 51.2 ± 3.1",
        f"-{' ' * 305} |          -",
    ]
