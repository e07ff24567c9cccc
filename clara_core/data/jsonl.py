"""Training sets: the published JSONL layouts, read, checked and written.

    stage1       {"data_type": "qa", "question": [..], "answers": [..], "docs": [passage]}
                 {"data_type": "paraphrase", "question": [], "answers": [paraphrase], "docs": [passage]}
    stage1_2     {"question": .., "docs": [k passages], "answer": ..}
    contrastive  {"question": .., "docs": [candidates], "pos_index": [..]}
    stage2       {"question": .., "docs": [candidates], "gold_answer": .., "pos_index": [..]}

The documents may be named ``docs``, ``context`` or ``content``; the answer ``answer``, ``answers``,
``golden_answers`` or ``gold_answer``, of which the first present one is the target of the training (the order of the
published code) and all are kept as references. Files are ``.jsonl``, ``.jsonl.gz`` or ``.parquet``. Texts are never
changed.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, Final, Self, overload

from clara_core.common.errors import DataError
from clara_core.data.examples import (
    STAGES,
    CompressionLine,
    InstructionLine,
    Line,
    RetrievalLine,
    Stage,
    check_line,
    check_stage,
    line_object,
    shown,
)

__all__ = [
    "STAGES",
    "CompressionLine",
    "InstructionLine",
    "Line",
    "LineWriter",
    "RetrievalLine",
    "Stage",
    "TrainingSet",
    "check_line",
    "read_lines",
    "read_objects",
    "write_lines",
]

_SUFFIXES: Final = (".jsonl", ".jsonl.gz", ".parquet")
_PARQUET_ROWS = 1024  # rows of a batch
_BLOCK = 1 << 16  # bytes of a block in the backward search for a line end


class TrainingSet(Sequence[Line]):
    """The lines of one or several files, which are all validated on construction.

    For a ``.jsonl`` file only the offsets of the lines are kept in memory and lines are read on access; files of the
    other kinds are kept in memory.

    Args:
        paths: One or several files.
        stage: The stage of the lines.

    Raises:
        DataError: A line is invalid; the message names file and line.
        ValueError: The stage is unknown, or there is no line.
    """

    def __init__(self, paths: str | Path | Iterable[str | Path], stage: Stage) -> None:
        check_stage(stage)
        self.stage: Stage = stage
        self.paths = tuple(Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths))
        self._files: list[_Offsets | list[Line]] = []
        for path in self.paths:
            if _kind(path) == ".jsonl":
                self._files.append(_Offsets(path, stage))
            else:
                self._files.append(list(read_lines(path, stage)))
        self._chosen: Sequence[int] = range(sum(map(len, self._files)))
        if not self._chosen:
            raise ValueError(f"no line in {', '.join(map(repr, map(str, self.paths))) or 'an empty list of files'}")

    def part(self, indices: Sequence[int]) -> TrainingSet:
        """A set of some of the lines, which are not read for it."""
        part = copy.copy(self)
        part._chosen = [self._chosen[index] for index in indices]  # noqa: SLF001 - of this class
        return part

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Line: ...
    @overload
    def __getitem__(self, index: slice) -> list[Line]: ...
    def __getitem__(self, index: int | slice) -> Line | list[Line]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"line {index} of {len(self)}")
        number = self._chosen[index]
        files = iter(self._files)
        lines = next(files)
        while number >= len(lines):
            number -= len(lines)
            lines = next(files)
        return lines[number]


class _Offsets:
    """The offsets and line numbers of the validated lines of a ``.jsonl`` file."""

    def __init__(self, path: Path, stage: Stage) -> None:
        self.path, self.stage = path, stage
        self.starts, self.numbers = array("Q"), array("Q")
        start = 0
        for number, raw in _numbered(path, _raw_lines(path)):
            if raw.strip():
                check_line(_parse(raw, f"{path}:{number}"), stage, f"{path}:{number}")
                self.starts.append(start)
                self.numbers.append(number)
            start += len(raw)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Line:
        where = f"{self.path}:{self.numbers[index]}"
        # Not one open file, because threads and forked workers would share its position.
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            return check_line(_parse(file.readline(), where), self.stage, where)


# --- reading ---------------------------------------------------------------------------------------------


def read_lines(path: str | Path, stage: Stage) -> Iterator[Line]:
    """Read and validate the lines of a file.

    Args:
        path: A ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` file. Blank lines are skipped.
        stage: The stage of the lines.

    Raises:
        DataError: The file cannot be read, or a line is invalid; the message names file and line.
        ValueError: The stage is unknown.
    """
    check_stage(stage)
    for where, found in read_objects(path):
        yield check_line(found, stage, where)


def read_objects(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the JSON objects of a file, each with its position ``file:line``; their fields are not validated.

    Raises:
        DataError: The file cannot be read, or a line is not a JSON object; the message names file and line.
    """
    path = Path(path)
    if _kind(path) == ".parquet":
        yield from _parquet_rows(path)
        return
    for number, raw in _numbered(path, _raw_lines(path)):
        if raw.strip():
            yield f"{path}:{number}", _parse(raw, f"{path}:{number}")


def _kind(path: Path) -> str:
    for suffix in _SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise DataError(f"{path}: a data file must be one of {', '.join(_SUFFIXES)}")


def _raw_lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") if _kind(path) == ".jsonl.gz" else path.open("rb") as file:
        yield from file


def _numbered(path: Path, lines: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers from 1; errors of the file name the line at which they occurred."""
    number = 0
    try:
        for number, raw in enumerate(lines, start=1):
            yield number, raw
    except (OSError, EOFError, zlib.error) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise DataError(f"{path}:{number + 1}: the file cannot be read any further: {reason}") from exc


def _parse(raw: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        raise DataError(f"{where}: not UTF-8 (byte {exc.start} of the line)") from exc
    except (ValueError, RecursionError) as exc:
        reason = f"{exc.msg} at character {exc.colno}" if isinstance(exc, json.JSONDecodeError) else exc
        hint = "" if raw.endswith(b"\n") else "; the line has no line break: was the file cut off?"
        raise DataError(f"{where}: not valid JSON: {reason}{hint}") from exc
    if not isinstance(found, dict):
        raise DataError(f"{where}: a line must be a JSON object, got {shown(found)}")
    return found


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as exc:
        raise ImportError("reading .parquet needs pyarrow: pip install pyarrow") from exc
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    # Columns that only other rows have are null.
                    yield f"{path}:{number}", {name: value for name, value in row.items() if value is not None}
    except (OSError, ArrowException) as exc:
        raise DataError(f"{path}:{number + 1}: the file cannot be read any further: {exc}") from exc


# --- writing ---------------------------------------------------------------------------------------------


def write_lines(path: str | Path, lines: Iterable[Line | Mapping[str, Any]]) -> int:
    """Write a file of lines, atomically.

    Args:
        path: A ``.jsonl`` or ``.jsonl.gz`` file; its folder is created if it does not exist.
        lines: Lines, written in the published layout, or objects, written as they are.

    Returns:
        int: Number of lines.

    Raises:
        DataError: The file cannot be written.
    """
    path = Path(path)
    if _kind(path) == ".parquet":
        raise DataError(f"{path}: .parquet files cannot be written; give .jsonl or .jsonl.gz")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                count = _write_all(file, lines, packed=path.name.lower().endswith(".gz"))
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as exc:
        raise _unwritable(path, exc) from exc
    return count


def _write_all(file: IO[bytes], lines: Iterable[Line | Mapping[str, Any]], *, packed: bool) -> int:
    count = 0
    with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) if packed else nullcontext(file) as out:
        for line in lines:
            out.write(_encoded(line))
            count += 1
    file.flush()
    return count


class LineWriter:
    """Appends lines to a ``.jsonl`` file; `write` returns after a line is synced to disk.

    An incomplete last line, as a killed writer leaves it, is removed when the file is opened. Only one process may
    write at a time.

    Args:
        path: The file; it and its folder are created if they do not exist.

    Raises:
        DataError: The file cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if _kind(self.path) != ".jsonl":
            raise DataError(f"{self.path}: lines can only be appended to a .jsonl file")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab+", buffering=0)
            self._end = _end_of_last_line(self._file)
            self._file.truncate(self._end)
        except OSError as exc:
            raise _unwritable(self.path, exc) from exc

    def write(self, line: Line | Mapping[str, Any]) -> None:
        """Append a line.

        Raises:
            DataError: The line cannot be written; the file is unchanged.
        """
        data = _encoded(line)
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
            os.fsync(self._file.fileno())
        except OSError as exc:
            self._file.truncate(self._end)
            raise _unwritable(self.path, exc) from exc
        self._end += len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _encoded(line: Line | Mapping[str, Any]) -> bytes:
    found = line if isinstance(line, Mapping) else line_object(line)
    return json.dumps(found, ensure_ascii=False).encode() + b"\n"


def _end_of_last_line(file: io.FileIO) -> int:
    """Offset of the end of the last complete line."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _unwritable(path: Path, exc: OSError) -> DataError:
    return DataError(f"{path}: cannot be written: {exc.strerror or exc}; its earlier content is unchanged")
