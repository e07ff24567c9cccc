"""Every program of README.md and of the pages runs unchanged in an empty folder, and prints what the page says."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import typer

from clara_core.cli.main import app
from tests.docs_blocks import PAGES, ROOT, Block, blocks_of, run

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PROGRAMS = [block for block in BLOCKS if block.language in ("python", "py")]
RUN = [block for block in PROGRAMS if block.not_run is None]


@pytest.mark.parametrize("block", RUN, ids=str)
def test_a_program_runs_in_an_empty_folder_and_prints_what_the_page_says(block: Block, tmp_path: Path) -> None:
    ran = run(block.text, tmp_path / "empty")
    assert not ran.failed, ran.err
    assert "Warning" not in ran.err, ran.err
    assert ran.out == (block.prints or ""), "a program without a `text` block after it prints nothing"


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_a_program_that_is_not_run_says_why_and_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec", dont_inherit=True, flags=0)
    assert block.not_run is None or block.not_run.startswith("needs "), block.not_run


def commands() -> list[tuple[str, list[str]]]:
    """All command lines of `clara` in fenced and indented blocks."""
    found = []
    for page in PAGES:
        for line in re.findall(r"^ {0,4}(clara \w.*)$", page.read_text("utf-8").replace("\\\n", " "), re.MULTILINE):
            words = shlex.split(line, comments=True)
            found.append((f"{page.relative_to(ROOT).as_posix()}: {' '.join(words)}", words[1:]))
    return found


@pytest.mark.parametrize("words", [words for _, words in commands()], ids=[name for name, _ in commands()])
def test_a_command_line_names_what_there_is(words: list[str]) -> None:
    group = typer.main.get_command(app)
    context = group.make_context("clara", list(words))
    name, command, rest = group.resolve_command(context, list(words))  # type: ignore[attr-defined]
    command.make_context(name, rest)  # raises for an unknown option, a missing argument, a value that is not a choice


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)(?:#[\w-]+)?\)", text):
        made_with_the_site = page.parent / target == ROOT / "docs" / "cli.md"
        assert made_with_the_site or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_modules_that_a_page_names_exist(page: Path) -> None:
    """In code spans, as paths from the project, from `clara_core` or beside the page."""
    folders = [name for name in (*ROOT.iterdir(), *(ROOT / "clara_core").iterdir()) if name.is_dir()]
    for path in re.findall(r"`([\w./-]+/[\w-]+\.py)`", page.read_text(encoding="utf-8")):
        if any(path.startswith(f"{folder.name}/") for folder in folders):
            assert any((base / path).exists() for base in (ROOT, ROOT / "clara_core", page.parent)), path


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 700


def test_the_reference_names_everything_that_is_public() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    packages = ("clara_core", "clara_core.evaluation", "clara_core.store.bulk", "langchain_clara", "llama_index_clara")
    public = {
        f"{package}.{name}" for package in packages for name in import_module(package).__all__ if name != "__version__"
    }
    assert public <= shown
    for name in shown:  # no name that was removed
        package, _, attribute = name.rpartition(".")
        assert hasattr(import_module(package), attribute), name
