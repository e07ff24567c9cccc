"""Finds the programs on the pages of the documentation, and runs each in an empty folder and a process of its own.

python -m tests.docs_blocks [PAGE ...]    updates the `text` blocks with the current output; read the diff
"""

from __future__ import annotations

import multiprocessing
import os
import re
import runpy
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Imported before the processes are forked, because a short program spends most of its time importing.
_PRELOAD = [
    "transformers.models.mistral.modeling_mistral",
    "clara_core.engine.engine",
    "clara_core.store",
    "langchain_clara.vectorstores",
    "langchain_clara.chat_models",
    "llama_index_clara.query_engine",
    __name__,
]
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: (\S[^\n]*) -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: Path of the page, from the root of the project.
        line: Number of its first line on the page.
        language: Its language; "" if it has none.
        text: Its content.
        prints: Expected output, from the `text` block right after it; None if there is none.
        not_run: Reason why it is only compiled, from the comment right before it: ``<!-- not run: needs … -->``.
    """

    page: str
    line: int
    language: str
    text: str
    prints: str | None
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Ran:
    """Output of a program, and whether it failed."""

    failed: bool
    out: str
    err: str


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = list(_FENCE.finditer(text))
    blocks = []
    for index, match in enumerate(found):
        after = found[index + 1] if index + 1 < len(found) else None
        answers = after is not None and after[2] == "text" and not text[match.end() : after.start()].strip()
        reason = _NOT_RUN.search(text[: match.start()])
        blocks.append(
            Block(
                page=page.relative_to(ROOT).as_posix(),
                line=text.count("\n", 0, match.start(3)) + 1,
                language=match[2],
                text=match[3],
                prints=after[3] if answers and after is not None else None,
                not_run=None if reason is None else reason[1],
            )
        )
    return blocks


def run(source: str, folder: Path) -> Ran:
    """Run a program as a file of its own, in an empty folder."""
    program = folder.parent / f"{folder.name}.py"
    program.write_text(source, encoding="utf-8")
    folder.mkdir()
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(kind)
    if kind == "forkserver":
        context.set_forkserver_preload(_PRELOAD)
    written = folder.parent / f"{folder.name}.out", folder.parent / f"{folder.name}.err"
    process = context.Process(target=_run, args=(str(program), str(folder), *map(str, written)))
    process.start()
    process.join()
    out, err = (path.read_text(encoding="utf-8") for path in written)
    return Ran(process.exitcode != 0, out, err)


def _run(program: str, folder: str, out: str, err: str) -> None:
    os.chdir(folder)
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream.fileno())
        os.close(file)
    failed = False
    try:
        runpy.run_path(program, run_name="__main__")
    except BaseException:  # noqa: BLE001 - any error of the program is shown by the test
        failed = True
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if failed:
        sys.exit(1)


def rewrite(page: Path, folder: Path) -> None:
    """Write the output of the programs of a page into the blocks after them; errors go to standard error."""
    for block in blocks_of(page):
        if block.language != "python" or block.not_run is not None:
            continue
        ran = run(block.text, folder / f"{page.stem}-{block.line}")
        if ran.failed:
            sys.stderr.write(f"{block}: {ran.err}\n")
        elif block.prints is not None and ran.out != block.prints:
            text = page.read_text(encoding="utf-8")
            after = text.index("```text\n", text.index(block.text)) + len("```text\n")
            page.write_text(text[:after] + ran.out + text[after + len(block.prints) :], encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as room:
        for one in [Path(name).resolve() for name in sys.argv[1:]] or PAGES:
            rewrite(one, Path(room))
