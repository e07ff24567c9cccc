"""Reads files of many kinds as text, by their suffix.

HTML and Word files become Markdown. Rows and objects of .csv, .tsv, .json and .jsonl files become records of
``name: value`` lines, with numbers as they are written. HTML, Word and PDF files need the packages of the extra
``files``.
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

LARGEST: Final = 256 << 20  # most bytes of a file, and of the content of a compressed file
_NULS: Final = 20  # a file with one NUL in this many characters is binary
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is a prefix of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DELIMITERS: Final = ",;\t|"
_GAP: Final = "\n\n"  # between records


class Unreadable(Exception):
    """A file cannot be read; the message is the reason, without the name of the file."""


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a file.

    Attributes:
        text: Its text.
        starts: Character offsets of records; empty if there are none.
        bad_lines: Numbers of lines that could not be read.
    """

    text: str
    starts: tuple[int, ...] = ()
    bad_lines: tuple[int, ...] = ()


def read_content(name: str, data: bytes) -> Content:
    """Read a file by its suffix; a file with an unknown suffix is read as plain text.

    Raises:
        Unreadable: The file is of another kind than its suffix, damaged or encrypted, or a package is not installed.
    """
    suffix = PurePath(name).suffix.lower()
    return READERS.get(suffix, _plain)(data)


# --- text ------------------------------------------------------------------------------------------------


def decode(data: bytes) -> str:
    """Decode text as UTF-8, or by its byte order mark.

    Raises:
        Unreadable: The text has another encoding, or the data is binary.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as exc:
        if b"\0" in data[:8192]:
            raise Unreadable("binary, not text") from exc
        raise Unreadable(f"not UTF-8 (byte {exc.start}); convert the file to UTF-8") from exc
    if text.count("\0") * _NULS > len(text):
        raise Unreadable("binary, or UTF-16 without a byte order mark")
    return text


def _plain(data: bytes) -> Content:
    return Content(decode(data))


# --- pages and documents -----------------------------------------------------------------------------------


def _html(data: bytes) -> Content:
    soup = _package("bs4").BeautifulSoup(data, "html.parser")  # detects the encoding
    with _foreign("HTML"):
        return Content(_markdown(soup))


def _markdown(soup: Any) -> str:
    """Convert headings, lists, tables and paragraphs; drop hidden elements, emphasis, links and images."""
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
            raise Unreadable(f"unpacks to {size:,} bytes, but at most {LARGEST:,} are read")
        no_pictures = mammoth.images.img_element(lambda _: {"src": ""})
        page = mammoth.convert_to_html(io.BytesIO(data), convert_image=no_pictures).value
        return Content(_markdown(bs4.BeautifulSoup(page, "html.parser")))


def _pdf(data: bytes) -> Content:
    pypdf = _package("pypdf")
    with _foreign("PDF"), _silent("pypdf"):
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("encrypted with a password")
        pages = [page.extract_text().strip() for page in reader.pages]
    text = _GAP.join(page for page in pages if page)
    if not text:
        raise Unreadable("no page has text (scanned?); apply OCR first")
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
        raise Unreadable("the JSON is nested too deeply") from exc


def _json_lines(data: bytes) -> Content:
    records: list[str] = []
    bad: list[int] = []
    # Not splitlines(), which also splits at Unicode line separators inside JSON strings.
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
    """Parse JSON, with numbers as strings as they are written."""
    return json.loads(text, parse_float=str, parse_int=str, parse_constant=str)


def _object(value: Any) -> str:
    return "\n".join(f"{path}: {text}" if path else text for path, text in _leaves("", value))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Each scalar value with its path of names; a list of scalars is one value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{path}.{name}" if path else name, inner)
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for number, inner in enumerate(value, start=1):
            yield from _leaves(f"{path}.{number}" if path else str(number), inner)
    elif value is not None and value not in ([], ""):
        yield path, ", ".join(map(_scalar, value)) if isinstance(value, list) else _scalar(value)


def _scalar(value: Any) -> str:
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
    """Turn any exception of a parser into `Unreadable`."""
    try:
        yield
    except Unreadable:
        raise
    except Exception as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0][:200]
        raise Unreadable(f"not a readable {kind} ({reason})") from exc


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Silence a logger, since parsers log every irregularity of a readable file."""
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
