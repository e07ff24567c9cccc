"""Reads the files of a folder and splits them into passages, at headings or records and by the compressor's window."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from clara_core.data.readers import LARGEST, MARKDOWN, READERS, Unreadable, read_content

SUFFIXES = tuple(READERS)
Spans = list[tuple[int, int]]

_MARKDOWN_HEADING = re.compile(r"#{1,6}\s+\S")
_FENCE = re.compile(r"\s{0,3}(```|~~~)")
_LONGEST_TITLE = 60  # most characters of a title in plain text


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file that was read.

    Attributes:
        name: Path relative to the folder, with forward slashes.
        text: Content of the file; other kinds than text files are converted by `clara_core.data.readers`.
        starts: Character offsets of its records (rows, objects); empty if the file has no records.
    """

    name: str
    text: str
    starts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file, a folder or a part of a file that was not read.

    Attributes:
        name: Path relative to the folder, with forward slashes.
        reason: Why it was not read.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage of a file.

    Attributes:
        file: Name of the file.
        start: Character offset in the file.
        text: Text of the passage, without surrounding space.
    """

    file: str
    start: int
    text: str


def read_folder(folder: Path) -> tuple[list[TextFile], list[LeftOut]]:
    """Read the files of a folder and its subfolders, in the order of their names.

    Kinds and encodings are those of `clara_core.data.readers`. Links to files are followed, links to folders are not.
    A file without text is returned and also listed as left out.

    Args:
        folder: A folder, or one file, which is read as plain text if its suffix is unknown.

    Returns:
        tuple: The files, and everything that was left out with its reason.

    Raises:
        ValueError: The folder does not exist.
    """
    if not folder.exists():
        raise ValueError(f"there is no folder {str(folder)!r}")
    left_out: list[LeftOut] = []
    if folder.is_dir():
        root, paths = folder, sorted(_walk(folder, left_out))
    else:
        root, paths = folder.parent, [folder]
    files = []
    for path in paths:
        name = path.relative_to(root).as_posix()
        try:
            content = read_content(name, _bytes(path))
        except Unreadable as exc:
            left_out.append(LeftOut(name, str(exc)))
            continue
        files.append(TextFile(name, content.text, content.starts))
        left_out += [LeftOut(f"{name} line {number}", "not JSON") for number in content.bad_lines]
        if not content.text.strip():
            left_out.append(LeftOut(name, "holds no text"))
    return files, sorted(left_out, key=lambda one: one.name)


def group_left_out(left_out: Iterable[LeftOut], shown: int = 3) -> list[str]:
    """One line for each reason, with the names of a few files and the number of further ones."""
    names: dict[str, list[str]] = {}
    for one in left_out:
        names.setdefault(one.reason, []).append(one.name)
    return [
        f"{', '.join(found[:shown])}{f' and {len(found) - shown:,} more' if len(found) > shown else ''}: {reason}"
        for reason, found in names.items()
    ]


def cut_passages(file: TextFile, windows: Callable[[str], Spans]) -> list[Passage]:
    """Split a file at its headings or records, and sections longer than a window into windows.

    Args:
        file: The file; its suffix tells Markdown from plain text, in which a short line on its own is a heading.
        windows: Splits a text into spans that fit the compressor, such as ``tokenizer.windows``.

    Returns:
        list: Passages in order, which cover the text except for surrounding space.
    """
    passages = []
    markdown = PurePath(file.name).suffix.lower() in MARKDOWN
    starts = file.starts or _sections(file.text, markdown=markdown)
    for start, end in zip(starts, [*starts[1:], len(file.text)], strict=True):
        section = file.text[start:end]
        lead = len(section) - len(section.lstrip())
        section = section.strip()
        for first, last in windows(section) if section else []:
            piece = section[first:last]
            skipped = len(piece) - len(piece.lstrip())
            if piece := piece.strip():
                passages.append(Passage(file.name, start + lead + first + skipped, piece))
    return passages


def _walk(folder: Path, left_out: list[LeftOut]) -> Iterator[Path]:
    """The readable files below a folder; everything else is added to `left_out`."""
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            entries = list(os.scandir(place))
        except OSError as exc:
            name = place.relative_to(folder).as_posix()
            left_out.append(LeftOut(f"{name}/", f"cannot be read: {exc.strerror or exc}"))
            continue
        for entry in entries:
            path = place / entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            problem = _problem(entry)
            if problem is not None:
                name = path.relative_to(folder).as_posix()
                left_out.append(LeftOut(f"{name}/" if is_folder else name, problem))
            elif is_folder:
                waiting.append(path)
            else:
                yield path


def _problem(entry: os.DirEntry[str]) -> str | None:
    """The reason to skip an entry of a folder, or None."""
    if entry.name.startswith("."):
        return "hidden"
    if entry.is_dir(follow_symlinks=False):
        return None
    if entry.is_symlink():
        try:
            entry.stat()
        except OSError as exc:  # a missing target or a cycle of links
            return f"a broken link ({exc.strerror})"
        if entry.is_dir():
            return "a link to a folder; give that folder itself"
    suffix = PurePath(entry.name).suffix.lower()
    if suffix not in READERS:
        return f"{suffix} files are not read" if suffix else "files without a suffix are not read"
    return None


def _bytes(path: Path) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise Unreadable("not a regular file")  # opening a pipe would block
        if found.st_size > LARGEST:
            raise Unreadable(f"{found.st_size:,} bytes, but at most {LARGEST:,} are read: split the file")
        return path.read_bytes()
    except OSError as exc:
        raise Unreadable(f"cannot be read: {exc.strerror or exc}") from exc


def _sections(text: str, *, markdown: bool) -> list[int]:
    """Offsets of the sections, which begin at a heading; consecutive headings stay together."""
    starts = [0]
    has_body = False
    for start, heading, line in _lines(text, markdown=markdown):
        if heading and has_body:
            starts.append(start)
            has_body = False
        elif not heading and line.strip():
            has_body = True
    return starts


def _lines(text: str, *, markdown: bool) -> Iterator[tuple[int, bool, str]]:
    """Offset of each line, whether it is a heading, and the line."""
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
    """Whether a line between blank lines looks like a title instead of a sentence."""
    return 0 < len(line) <= _LONGEST_TITLE and line[0].isalnum() and line[-1].isalnum()
