"""Files of a folder as passages: read, cut at headings, no longer than the compressor's window."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".md", ".txt")
Spans = list[tuple[int, int]]

_MARKDOWN_HEADING = re.compile(r"#{1,6}\s+\S")
_FENCE = re.compile(r"\s{0,3}(```|~~~)")
_LONGEST_TITLE = 60  # characters of a line that may be a title in a plain text


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file that was read.

    Attributes:
        name: Path below the folder, with forward slashes.
        text: Its content, line ends as they are.
    """

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a file that is about one thing.

    Attributes:
        file: Name of the file.
        start: Where it begins in the file, in characters.
        text: The piece, without the space around it.
    """

    file: str
    start: int
    text: str


def read_folder(folder: Path) -> tuple[list[TextFile], list[str]]:
    """Read the .md and .txt files of a folder and its subfolders, in the order of their names.

    Hidden files and folders are left out. The text is UTF-8, with or without a byte order mark.

    Args:
        folder: A folder, or one file.

    Returns:
        tuple: The files, and a line for each file that could not be read, saying why.

    Raises:
        ValueError: There is no such folder.
    """
    if not folder.exists():
        raise ValueError(f"there is no folder {str(folder)!r}")
    root = folder if folder.is_dir() else folder.parent
    files: list[TextFile] = []
    problems: list[str] = []
    for path in _paths(folder):
        name = path.relative_to(root).as_posix()
        try:
            files.append(TextFile(name, path.read_bytes().decode("utf-8-sig")))
        except UnicodeDecodeError as exc:
            problems.append(f"{name} is not UTF-8 (byte {exc.start}); convert it, or take it out")
        except OSError as exc:
            problems.append(f"{name} cannot be read: {exc.strerror or exc}")
    return files, problems


def cut_passages(file: TextFile, windows: Callable[[str], Spans]) -> list[Passage]:
    """Cut a file at its headings, and what is longer than a window into windows.

    Args:
        file: Markdown by its name, otherwise a plain text whose titles stand alone on a short line.
        windows: Cuts a text into spans that fit the compressor, such as ``tokenizer.windows``.

    Returns:
        list: Passages in order; all of the text but the space around them.
    """
    passages = []
    for start, end in _sections(file.text, markdown=file.name.lower().endswith(".md")):
        section = file.text[start:end]
        lead = len(section) - len(section.lstrip())
        section = section.strip()
        for first, last in windows(section) if section else []:
            piece = section[first:last]
            skipped = len(piece) - len(piece.lstrip())
            if piece := piece.strip():
                passages.append(Passage(file.name, start + lead + first + skipped, piece))
    return passages


def _paths(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    visible = (path for path in found if not _hidden(path.relative_to(folder)))
    return sorted(path for path in visible if path.is_file())


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _sections(text: str, *, markdown: bool) -> Spans:
    """Spans that begin at a heading; headings right under each other stay together."""
    cuts = [0]
    has_body = False
    for start, heading, line in _lines(text, markdown=markdown):
        if heading and has_body:
            cuts.append(start)
            has_body = False
        elif not heading and line.strip():
            has_body = True
    return list(zip(cuts, [*cuts[1:], len(text)], strict=True))


def _lines(text: str, *, markdown: bool) -> Iterator[tuple[int, bool, str]]:
    """Each line with where it starts and whether it is a heading."""
    lines = text.splitlines(keepends=True)
    start = 0
    fenced = False
    for index, line in enumerate(lines):
        if markdown:
            fenced ^= bool(_FENCE.match(line))
            heading = not fenced and bool(_MARKDOWN_HEADING.match(line))
        else:
            before = lines[index - 1] if index else ""
            after = lines[index + 1] if index + 1 < len(lines) else ""
            heading = not before.strip() and not after.strip() and _is_title(line.strip())
        yield start, heading, line
        start += len(line)


def _is_title(line: str) -> bool:
    """Whether a line that stands alone names what follows instead of saying something."""
    return 0 < len(line) <= _LONGEST_TITLE and line[0].isalnum() and line[-1].isalnum()
