"""Files of many kinds as text: what each suffix is read by.

Pages (.html) and documents (.docx) become Markdown, rows and objects (.csv, .tsv, .json, .jsonl) become records of
``name: value`` lines, as they are written: no number is rounded, no value is left out. The packages that HTML, Word and
PDF need are those of the extra ``files``. Where a file cannot be read, `Unreadable` says why.
"""

from __future__ import annotations

import codecs
import csv
import importlib
import io
import json
import logging
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from types import ModuleType
from typing import Any, Final

LARGEST: Final = 256 << 20  # bytes of a file, and of what a packed one holds
_NULS: Final = 20  # one in so many characters, and it is not a text
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DELIMITERS: Final = ",;\t|"
_GAP: Final = "\n\n"  # between records


class Unreadable(Exception):
    """Why a file is not read; the message goes behind its name."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a file says.

    Attributes:
        text: Its text.
        starts: Characters at which records begin; empty where the text is not made of records.
        bad_lines: Numbers of lines that could not be read.
    """

    text: str
    starts: tuple[int, ...] = ()
    bad_lines: tuple[int, ...] = ()


def read_content(name: str, data: bytes) -> Content:
    """The text of a file by its suffix; an unknown suffix is read as plain text.

    Raises:
        Unreadable: It is of another kind than its name says, damaged, locked, or its package is not installed.
    """
    suffix = PurePath(name).suffix.lower()
    return READERS.get(suffix, _plain)(data)


# --- text ------------------------------------------------------------------------------------------------


def decode(data: bytes) -> str:
    """UTF-8, or what a byte order mark says.

    Raises:
        Unreadable: It is neither.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as exc:
        if b"\0" in data[:8192]:
            raise Unreadable("binary, not text") from exc
        raise Unreadable(f"not UTF-8 (byte {exc.start}); convert it, or take it out") from exc
    if text.count("\0") * _NULS > len(text):
        raise Unreadable("binary, or UTF-16 without a byte order mark")
    return text


def _plain(data: bytes) -> Content:
    return Content(decode(data))


# --- pages and documents -----------------------------------------------------------------------------------


def _html(data: bytes) -> Content:
    soup = _package("bs4").BeautifulSoup(data, "html.parser")  # the encoding is in the page itself
    with _foreign("HTML"):
        return Content(_markdown(soup))


def _markdown(soup: Any) -> str:
    """Headings, lists, tables and paragraphs; nothing that is not shown, and no emphasis, links or pictures."""
    markdownify = _package("markdownify")
    for hidden in soup(["script", "style", "noscript", "template", "svg"]):
        hidden.decompose()
    title = soup.title.extract().get_text(" ", strip=True) if soup.title else ""
    converter = markdownify.MarkdownConverter(
        heading_style="ATX",
        bullets="-",
        strip=["a", "img", "b", "strong", "i", "em", "u", "s", "del"],
        escape_asterisks=False,
        escape_underscores=False,
        table_infer_header=True,
    )
    body = "\n".join(line.rstrip() for line in converter.convert_soup(soup).strip().splitlines())
    return f"# {title}\n\n{body}" if title and not soup.find("h1") else body


def _word(data: bytes) -> Content:
    mammoth, bs4 = _package("mammoth"), _package("bs4")
    with _foreign("Word document"):
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            size = sum(entry.file_size for entry in packed.infolist())
        if size > LARGEST:
            raise Unreadable(f"unpacks to {size:,} bytes; no more than {LARGEST:,} are read")
        no_pictures = mammoth.images.img_element(lambda _: {"src": ""})
        page = mammoth.convert_to_html(io.BytesIO(data), convert_image=no_pictures).value
        return Content(_markdown(bs4.BeautifulSoup(page, "html.parser")))


def _pdf(data: bytes) -> Content:
    pypdf = _package("pypdf")
    with _foreign("PDF"), _silent("pypdf"):
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("locked by a password")
        pages = [page.extract_text().strip() for page in reader.pages]
    text = _GAP.join(page for page in pages if page)
    if not text:
        raise Unreadable("no page has text (scanned?); put it through OCR first")
    return Content(text)


# --- records -----------------------------------------------------------------------------------------------


def _csv(data: bytes) -> Content:
    text = decode(data)
    first = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=first.count)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(row)]
    except csv.Error as exc:
        raise Unreadable(f"not CSV ({exc})") from exc
    if not rows:
        return Content("")
    header, *body = rows
    names = [name.strip() for name in header]
    return _records(_row(names, row) for row in body) if body else Content(", ".join(names))


def _row(names: list[str], row: list[str]) -> str:
    cells = ((names[at] if at < len(names) else f"column {at + 1}", cell.strip()) for at, cell in enumerate(row))
    return "\n".join(f"{name}: {cell}" if name else cell for name, cell in cells if cell)


def _json(data: bytes) -> Content:
    try:
        value = _parsed(decode(data))
        return _records(map(_object, value if isinstance(value, list) else [value]))
    except ValueError as exc:
        raise Unreadable(f"not JSON ({exc})") from exc
    except RecursionError as exc:
        raise Unreadable("JSON that is nested too deep") from exc


def _json_lines(data: bytes) -> Content:
    records: list[str] = []
    bad: list[int] = []
    # Not splitlines(): the line ends of other alphabets may stand inside a JSON string.
    for number, line in enumerate(decode(data).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(_object(_parsed(line)))
        except (ValueError, RecursionError):
            bad.append(number)
    if bad and not records:
        raise Unreadable("no line is JSON")
    content = _records(records)
    return Content(content.text, content.starts, tuple(bad))


def _parsed(text: str) -> Any:
    """JSON with its numbers as they are written."""
    return json.loads(text, parse_float=str, parse_int=str, parse_constant=str)


def _object(value: Any) -> str:
    return "\n".join(f"{path}: {said}" if path else said for path, said in _leaves("", value))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Each value with the names that lead to it; a list of plain values is one."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{path}.{name}" if path else name, inner)
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for number, inner in enumerate(value, start=1):
            yield from _leaves(f"{path}.{number}" if path else str(number), inner)
    elif value is not None and value not in ([], ""):
        yield path, ", ".join(map(_said, value)) if isinstance(value, list) else _said(value)


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _records(records: Iterator[str] | list[str]) -> Content:
    kept = [record for record in records if record]
    starts, at = [], 0
    for record in kept:
        starts.append(at)
        at += len(record) + len(_GAP)
    return Content(_GAP.join(kept), tuple(starts))


# --- packages ----------------------------------------------------------------------------------------------


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise Unreadable("needs a package that is not installed: pip install 'clara-rag[files]'") from exc


@contextmanager
def _foreign(kind: str) -> Iterator[None]:
    """Damaged files make parsers raise anything."""
    try:
        yield
    except Unreadable:
        raise
    except Exception as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]
        raise Unreadable(f"no {kind} that can be read ({reason})") from exc


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """A parser logs each oddity of a file that it reads all the same."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


READERS: Final[dict[str, Callable[[bytes], Content]]] = {
    ".md": _plain,
    ".markdown": _plain,
    ".txt": _plain,
    ".rst": _plain,
    ".html": _html,
    ".htm": _html,
    ".docx": _word,
    ".pdf": _pdf,
    ".csv": _csv,
    ".tsv": _csv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
}
MARKDOWN: Final = frozenset({".md", ".markdown", ".html", ".htm", ".docx"})
