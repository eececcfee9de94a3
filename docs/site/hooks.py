"""Hooks of MkDocs: generate the pages that follow from the code, add files from outside docs/, and check links to files.

Generated: commands.md (from the `pul` command), api/ (a page per package of `pul_core`) and
adr/index.md (a list of the decisions). A link to a file outside docs/ becomes the name of that file, unless the file is a download; one
to a file that does not exist is a warning, which `mkdocs build --strict` turns into a failure.
"""

import ast
import logging
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
logger = logging.getLogger("mkdocs.hooks.pul")
# Files outside docs/ that are pages of the site, by the name of the page.
ADDED = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "docker.md": "docker/README.md",
    "benchmarks.md": "benchmarks/README.md",
}
DOWNLOADS = ("examples/quickstart.ipynb", "examples/pul_by_hand.py", "benchmarks/ablation_drawn.json")  # files that pages link to
NOT_ON_SITE = re.compile(r"<!-- not on the site -->.*?<!-- end -->\n*", re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> None:
    """List the decisions below their index in the navigation."""
    (contribute,) = [section["Contribute"] for section in config.nav if "Contribute" in section]
    decisions = [f"adr/{path.name}" for path in sorted((ROOT / "docs" / "adr").glob("0*.md"))]
    contribute[contribute.index({"Decisions": "adr/index.md"})] = {"Decisions": [{"All decisions": "adr/index.md"}, *decisions]}


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages and the files outside docs/."""
    generated = {"commands.md": commands_page(), "adr/index.md": decisions_page(), **api_pages()}
    added = {page: (ROOT / name).read_text(encoding="utf-8") for page, name in ADDED.items()}
    downloads = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOWNLOADS}
    for page, text in {**added, **generated, **downloads}.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links to pages from outside docs/, turn links to other files into names, and leave out what the site does not need."""
    name = page.file.src_uri
    here = ROOT / ADDED.get(name, f"docs/{name}")

    def rewrite(match: re.Match[str]) -> str:
        image, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        path = Path(os.path.normpath(here.parent / target))
        inside = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
        pages = {source: added for added, source in ADDED.items()}
        if inside in pages:
            goal = pages[inside]
        elif inside in DOWNLOADS:
            goal = inside
        elif inside.startswith("docs/"):
            goal = inside.removeprefix("docs/") + ("/index.md" if path.is_dir() else "")
        elif path.exists() and inside:
            return f"{text} (`{inside}`)" if text != inside and text != f"`{inside}`" else f"`{inside}`"
        else:
            logger.warning("%s: the link %r leads to no file", name, target)
            return match[0]
        return f"{image}[{text}]({os.path.relpath(goal, Path(name).parent)}{anchor})"

    markdown = NOT_ON_SITE.sub("", markdown)
    if name == "parameters.md":
        markdown = _with_links(markdown)
    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("`") else LINK.sub(rewrite, part) for part in parts)


def commands_page() -> str:
    """Return the command reference, from the typer command itself."""
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from deployments.cli import app

    command = get_command(app)
    _print_whole_summaries(command)
    context = command.make_context("pul", [], resilient_parsing=True)
    text = get_docs_for_click(obj=command, ctx=context, name="pul", title="Commands")
    text = text.replace("\b\n", "")  # which keeps the lines of the examples in the help of a command
    text = re.sub(r"(?<=\n\n)(?:pul .*\n)+", lambda match: f"```console\n{match[0]}```\n", text)  # the examples of a command
    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", text, flags=re.DOTALL | re.MULTILINE)
    prose = [part if part.startswith("`") else part.replace("<", "&lt;") for part in parts]
    return _with_links("".join(prose))


def _print_whole_summaries(command: Any) -> None:
    """Give each command its whole first sentence as its short help, which click would cut off."""
    for subcommand in getattr(command, "commands", {}).values():
        subcommand.short_help = (subcommand.help or "").split("\n\n")[0].replace("\n", " ")
        _print_whole_summaries(subcommand)


def _with_links(text: str) -> str:
    """Turn the names of pages in help texts, such as docs/data.md, into links."""
    return re.sub(r"\bdocs/([\w-]+\.md)", r"[\1](\1)", text)


def decisions_page() -> str:
    """Return the list of the decisions, with their titles."""
    lines = [
        "# Decisions",
        "",
        "Each page records one decision: the context, the alternatives that were compared, and the consequences.",
        "",
    ]
    for path in sorted((ROOT / "docs" / "adr").glob("0*.md")):
        number, title = re.findall(r"^# (\d+)\. (.+)", path.read_text(encoding="utf-8"))[0]
        lines.append(f"{number}. [{title}]({path.name})")
    return "\n".join([*lines, ""])


def api_pages() -> dict[str, str]:
    """Return a page for each package of `pul_core`, with its modules, and an index of all modules."""
    pages: dict[str, str] = {}
    index = ["# API of pul_core", "", ast.get_docstring(ast.parse((ROOT / "pul_core" / "__init__.py").read_text(encoding="utf-8"))), ""]
    for folder in [ROOT / "pul_core", *sorted(path.parent for path in (ROOT / "pul_core").glob("*/__init__.py"))]:
        package = folder.relative_to(ROOT).as_posix().replace("/", ".")
        page, summary = f"{package}.md", first_sentence(folder / "__init__.py")
        index += [f"## [{package}]({page})", "", summary, "", "| module | |", "|---|---|"]
        parts = [f"# {package}", "", summary, ""]
        for module in sorted(path for path in folder.glob("*.py") if path.stem != "__init__"):
            name = f"{package}.{module.stem}"
            parts += [f"::: {name}", ""]
            index.append(f"| [{module.stem}]({page}#{name}) | {first_sentence(module)} |")
        pages[f"api/{page}"] = "\n".join(parts)
        index.append("")
    return pages | {"api/index.md": "\n".join(index)}


def first_sentence(module: Path) -> str:
    """Return the first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return docstring.splitlines()[0]
