"""Hooks of mkdocs: add pages from other folders, the page of the command line, and a section of unlisted pages."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# The page of the site for each file outside docs/.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "clara_core/pocket/README.md": "pocket.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[\w-]+)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List pages that the navigation omits in a last section, so that every page has a link."""
    named = set(re.findall(r"[\w/-]+\.md", repr(config.nav)))
    docs = ROOT / "docs"
    rest = sorted({path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} - named)
    if rest and config.nav is not None:
        config.nav.append({"More": rest})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `PAGES`, and cli.md."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "cli.md", content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files into links of the site; a file that the site does not contain becomes its name."""
    here = {page: source for source, page in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def on_site(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups(default="")
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        if not (ROOT / wanted).exists() and wanted.removeprefix("docs/") not in files.src_uris:
            return match[0]  # mkdocs reports it
        shown = PAGES.get(wanted, wanted.removeprefix("docs/"))
        if shown not in files.src_uris:
            return f"`{wanted}`" if text == target else f"{text} (`{wanted}`)"
        relative = posixpath.relpath(shown, posixpath.dirname(page.file.src_uri) or ".")
        return f"{image}[{text}]({relative}{anchor})"

    return _LINK.sub(on_site, markdown)


def command_line() -> str:
    """The commands with their arguments and options, as `clara --help` prints them."""
    import click
    import typer

    from clara_core.cli.main import app

    lines = ["# Command line\n", "`clara COMMAND --help` prints the same.\n"]

    def describe(command: click.Command, name: str, level: int) -> None:
        context = click.Context(command, info_name=name)
        lines.append(f"{'#' * level} {name}\n")
        if command.help:
            lines.append(re.sub(r"\n{3,}", "\n\n", command.help.replace("\b", "")) + "\n")
        members = getattr(command, "commands", {})
        if not members:
            usage = " ".join(command.collect_usage_pieces(context))
            lines.append(f"```sh\n{name} {usage}\n```\n")
            rows = [found for one in command.get_params(context) if (found := one.get_help_record(context))]
            if rows:
                lines.append("| | |\n|---|---|")
                lines.extend(f"| {_cell(f'`{flag}`')} | {_cell(text)} |" for flag, text in rows)
                lines.append("")
        for member, inner in members.items():
            describe(inner, f"{name} {member}", min(level + 1, 3))

    describe(typer.main.get_command(app), "clara", 2)
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
