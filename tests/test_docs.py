"""The documentation agrees with the code: commands parse, links lead to files, and the architecture page has the import contracts."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from deployments.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "docs/contribute/*.md", "docs/adr/*.md", "docker/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
ARCHIVE = ("log.md", "CHANGELOG.md")  # older entries use older names
COMMAND = re.compile(r"^(?:\.venv/bin/)?(pul \S.*)")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def code_blocks(text):
    return re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def documented_commands():
    for page in PAGES:
        if page.name not in ARCHIVE and page.parent.name != "adr":
            for block in code_blocks(page.read_text(encoding="utf-8")):
                for line in block.replace("\\\n", " ").splitlines():
                    if match := COMMAND.match(line.strip()):
                        yield pytest.param(match[1], id=f"{name_of(page)}: {match[1][:60]}")


@pytest.mark.parametrize("line", list(documented_commands()))
def test_a_documented_command_has_arguments_that_exist(line):
    """Parses the command without running it, so that a renamed option or command cannot stay in the documents."""
    command, context = get_command(app), None
    arguments = shlex.split(line, comments=True)[1:]
    while True:
        context = command.make_context(command.name, arguments, parent=context)
        rest = [*context._protected_args, *context.args]
        if not hasattr(command, "commands") or not rest:
            break
        command, arguments = command.commands[rest[0]], rest[1:]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_link_to_a_file_leads_to_one(page):
    prose = re.sub(r"^```.*?^```|`[^`\n]+`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", prose)
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_no_line_of_the_readme_has_more_than_200_characters():
    assert [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if len(line) > 200] == []


def contract(name):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (found,) = [contract for contract in settings["tool"]["importlinter"]["contracts"] if contract["name"].startswith(name)]
    return [re.split(r" *[:|] *", layer) for layer in found["layers"]]


def table_below(heading):
    """Return the names in backticks in the first cells of the table below a heading of the architecture page."""
    page = (ROOT / "docs" / "contribute" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|(.*)\|$", page.split(f"\n## {heading}\n")[1].split("\n## ")[0], re.MULTILINE)[2:]
    return [re.findall(r"`(\w+)`", "|".join(row.split("|")[:-1])) for row in rows]


def test_the_architecture_page_has_the_layers_of_the_import_contracts():
    assert [row[0] for row in table_below("Layers")] == [layer for (layer,) in contract("imports only point")]
    for heading, name in (("Inside tasks", "inside tasks"), ("Inside pul_core", "inside the core")):
        assert [sorted(row) for row in table_below(heading)] == [sorted(layer) for layer in contract(name)]


@pytest.mark.parametrize(("package", "heading"), [("tasks", "Inside tasks"), ("pul_core", "Inside pul_core")])
def test_the_architecture_page_names_every_module_and_package(package, heading):
    folder = ROOT / package
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert {name for row in table_below(heading) for name in row} == modules


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "contribute").glob("*.md")), ids=name_of)
def test_the_pages_for_contributors_name_files_and_functions_that_exist(page):
    text = page.read_text(encoding="utf-8")
    files = re.findall(r"`((?:pul_core|tasks|flows|deployments|tests|docs)/[\w/.]+\.\w+)`", text)
    assert files and [file for file in files if "NAME" not in file and not (ROOT / file).exists()] == []
    sources = "\n".join(path.read_text(encoding="utf-8") for name in ("pul_core", "tasks") for path in (ROOT / name).rglob("*.py"))
    functions = re.findall(r"`(_?[a-z]+(?:_[a-z0-9]+)+)`", text)
    shown = "\n".join(code_blocks(text))  # the code that the page shows
    assert [name for name in functions if name not in sources + shown and name not in ("pul_core",)] == []


@pytest.mark.parametrize("name", ["clustering", "data-set", "loss"])
def test_the_code_of_the_pages_for_contributors_runs(name):
    text = (ROOT / "docs" / "contribute" / f"{name}.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert "assert " in block
    exec(compile(block, f"{name}.md", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("name", ["clustering", "data-set", "loss"])
def test_the_changes_on_the_pages_for_contributors_fit_the_code(name):
    """The lines that a shown change removes or keeps exist, so that a page cannot describe older code."""
    text = (ROOT / "docs" / "contribute" / f"{name}.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```diff\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    source = ""
    for line in block.splitlines():
        if match := re.match(r" # (\S+\.py)$", line):
            source = (ROOT / match[1]).read_text(encoding="utf-8")
        elif line.startswith((" ", "-")) and (code := line[1:].strip().removesuffix(" ...")):
            assert code in source, line
