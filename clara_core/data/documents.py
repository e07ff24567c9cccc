"""Files of a folder as passages: read, cut at headings or between records, no longer than the compressor's window."""

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
_LONGEST_TITLE = 60  # characters of a line that may be a title in a plain text


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file that was read.

    Attributes:
        name: Path below the folder, with forward slashes.
        text: Its content; of a text file with the line ends as they are, of others as `clara_core.data.readers` shows
            it.
        starts: Characters at which its records begin (rows, objects); empty where it is no file of records.
    """

    name: str
    text: str
    starts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file, a folder or a part of a file that was not read.

    Attributes:
        name: Path below the folder, with forward slashes.
        reason: Why not.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


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


def read_folder(folder: Path) -> tuple[list[TextFile], list[LeftOut]]:
    """Read the files of a folder and its subfolders, in the order of their names.

    Kinds and encodings are those of `clara_core.data.readers`. Links to files are followed, links to folders are not.
    A file without text is read and named.

    Args:
        folder: A folder, or one file, which is read as plain text where its suffix is not known.

    Returns:
        tuple: The files, and everything else that is there, with why it was left out.

    Raises:
        ValueError: There is no such folder.
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
    """A line for each reason, with the names of a few of its files and how many more there are."""
    names: dict[str, list[str]] = {}
    for one in left_out:
        names.setdefault(one.reason, []).append(one.name)
    return [
        f"{', '.join(found[:shown])}{f' and {len(found) - shown:,} more' if len(found) > shown else ''}: {reason}"
        for reason, found in names.items()
    ]


def cut_passages(file: TextFile, windows: Callable[[str], Spans]) -> list[Passage]:
    """Cut a file at its headings or between its records, and what is longer than a window into windows.

    Args:
        file: Records where it has any; Markdown by its name; else a plain text whose titles stand alone on a short
            line.
        windows: Cuts a text into spans that fit the compressor, such as ``tokenizer.windows``.

    Returns:
        list: Passages in order; all of the text but the space around them.
    """
    passages = []
    markdown = PurePath(file.name).suffix.lower() in MARKDOWN
    sections = _between(file.starts, file.text) if file.starts else _sections(file.text, markdown=markdown)
    for start, end in sections:
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
    """Files of the known kinds below a folder; everything else is put on the list."""
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
    """Why an entry of a folder is not looked into."""
    if entry.name.startswith("."):
        return "hidden"
    if entry.is_dir(follow_symlinks=False):
        return None
    if entry.is_symlink():
        try:
            entry.stat()
        except OSError as exc:  # nothing there, or links that lead to each other
            return f"a link that leads nowhere ({exc.strerror})"
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
            raise Unreadable("not a regular file")  # opening a pipe would wait for ever
        if found.st_size > LARGEST:
            raise Unreadable(f"{found.st_size:,} bytes; no more than {LARGEST:,} are read: split it")
        return path.read_bytes()
    except OSError as exc:
        raise Unreadable(f"cannot be read: {exc.strerror or exc}") from exc


def _between(starts: tuple[int, ...], text: str) -> Spans:
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


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
