"""`MemoryStore`: documents with their memories in a folder, to be searched and read again by any process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import torch

from clara_core.errors import FingerprintMismatch, StoreError
from clara_core.filters import check_filter
from clara_core.memory import Memory
from clara_core.options import OPTIONS, given_options
from clara_core.store.asking import Filter, StoreSearch, check_engine
from clara_core.store.codec import MEMORY_TYPES, MemoryType
from clara_core.store.damage import Broken, explaining, salvage
from clara_core.store.keys import DEFAULT_LENGTH, Key
from clara_core.store.reading import batches, memories_of, passing_rows, rows_with
from clara_core.store.records import Record, StoreStats
from clara_core.store.scan import KeyScan
from clara_core.store.schema import RECORD_COLUMNS, Layout, memory_shape, records
from clara_core.store.table import Change, Table
from clara_core.store.upkeep import build_indexes, refit, rewrite_keys, statistics
from clara_core.store.writing import Writer, checked_documents
from clara_core.suggest import parameters, refuse_unknown

if TYPE_CHECKING:
    from lance import LanceDataset

    from clara_core.engine import ClaraEngine

_RECORDS: Final = 1024  # rows that are read at a time
_KEEP: Final = timedelta(hours=1)  # how long readers of other processes may hold an old version


@explaining(
    "delete", "compact", "optimize", "get", "memories", "count", "__contains__", "__iter__", "stats", "search",
    "search_mmr",
)  # fmt: skip
class MemoryStore(StoreSearch):
    """Documents by id with text, metadata and memory, on disk. Safe under threads and beside other processes.

    Make one with `open`.
    """

    def __init__(
        self, table: Table, engine: ClaraEngine | None, memory_type: MemoryType, key: int, read_only: bool
    ) -> None:
        self._table = table
        self.engine = engine
        self._memory_type = memory_type
        self._key_length = key
        self._read_only = read_only
        self._scan = KeyScan()

    @classmethod
    def open(
        cls,
        uri: str | PathLike[str],
        engine: ClaraEngine | None = None,
        *,
        model: str | None = None,
        memory_type: MemoryType = "bfloat16",
        key: int = DEFAULT_LENGTH,
        read_only: bool = False,
        storage_options: Mapping[str, str] | None = None,
        **options: Any,
    ) -> MemoryStore:
        """Open a store, or make one at the first `add`. Neither loads a model.

        Args:
            uri: A folder; ``memory://`` for a store that ends with this object; or the address of an object store, such
                as ``s3://bucket/path``.
            engine: Compresses texts and reads questions. Without one (and without `model`) the store still takes and
                gives ready memories, and finds texts by words.
            model: Instead of an engine: as in `ClaraEngine.from_pretrained`.
            memory_type: How a new store writes memories: ``bfloat16``, or ``int8`` in half the bytes.
            key: Numbers of a key in a new store.
            read_only: Refuse to write.
            storage_options: Credentials and settings of the object store.
            **options: Of the engine of `model`, as in `ClaraEngine.from_pretrained`, such as ``compression=16``.

        Raises:
            UnknownOption: An option that neither this function nor an engine has.
            StoreError: What is there cannot be read, or nothing is there and `read_only` is given.
        """
        refuse_unknown("MemoryStore.open", options, [*OPTIONS, *parameters(cls.open)])
        given = given_options({"model": model, **options})
        if engine is not None and given:
            raise ValueError(f"give engine= or {given[0]}=, not both: an engine has its own model and options")
        if model is None and given:
            raise ValueError(f"{given[0]}= is an option of the engine of a model: give model=, too")
        if memory_type not in MEMORY_TYPES:
            raise ValueError(f"memory_type must be one of {', '.join(MEMORY_TYPES)}, got {memory_type!r}")
        if model is not None:
            from clara_core.engine import ClaraEngine

            engine = ClaraEngine.from_pretrained(model, **options)
        table = Table(fspath(uri), dict(storage_options) if storage_options else None)
        dataset = table.latest()
        if dataset is not None:
            Layout.of(dataset.schema, table.uri)
        elif read_only:
            raise StoreError(f"there is no store at {table.uri}; write one first, without read_only=True")
        return cls(table, engine, memory_type, key, read_only)

    @property
    def uri(self) -> str:
        """Where it is."""
        return self._table.uri

    @property
    def fingerprint(self) -> str | None:
        """Of the model whose memories it holds; None while there are none."""
        dataset = self._table.latest()
        return None if dataset is None else Layout.of(dataset.schema, self.uri).fingerprint

    def __repr__(self) -> str:
        return f"MemoryStore({self.uri!r})"

    def __len__(self) -> int:
        return self.count()

    def __bool__(self) -> bool:
        return True  # also while it is empty

    # --- writing -----------------------------------------------------------------------------------------

    def add(
        self,
        texts: Iterable[str] | None = None,
        metadatas: Iterable[dict[str, Any] | None] | None = None,
        ids: Iterable[str | None] | None = None,
        memories: Iterable[Memory] | None = None,
        *,
        show_progress: bool = False,
    ) -> list[str]:
        """Keep documents; one whose id is here takes the other's place.

        Sequences are checked as a whole before anything is written; of iterators, each batch is. What the progress bar
        has counted is safe, whatever happens next, and so is everything once the call returns.

        A text that is here already is not compressed again, under whatever id.

        Args:
            texts: Any number of documents; may be left out where there are memories.
            metadatas: A dict of what JSON knows for each document.
            ids: One a document; None for an id that is made from the text.
            memories: Ready memories, one a document.
            show_progress: Draw a progress bar.

        Returns:
            list: The ids, in order.

        Raises:
            FingerprintMismatch: The memories are of another model than those that are here.
            StoreError: Others wrote all the time.
        """
        from tqdm.auto import tqdm

        self._check_writable()
        given = checked_documents(texts, metadatas, ids, memories)
        documents = list(given) if all(_is_sized(part) for part in (texts, metadatas, ids, memories)) else given
        total = len(documents) if isinstance(documents, list) else None
        written: list[str] = []
        stream = iter(documents)
        first = next(stream, None)
        if first is None:
            return []

        def noted() -> Iterator[Any]:
            written.append(first.id)
            yield first
            for document in stream:
                written.append(document.id)
                yield document

        fingerprint = self._writing_fingerprint(first.memory)
        compress = None if self.engine is None else self.engine.compress
        writer = Writer(self._table, fingerprint, compress, self._new_layout)
        with tqdm(total=total, desc="storing", unit="doc", disable=not show_progress) as bar:
            for count in writer.write(noted()):
                bar.update(count)
        return written

    def delete(self, ids: Iterable[str] | None = None, filter: Filter | None = None) -> int:  # noqa: A002
        """Take documents out: those with one of the ids, those that pass the filter, or with both those of both.

        Args:
            ids: Unknown ones are passed over.
            filter: As in `clara_core.filters`; ``{}`` means every document.

        Returns:
            int: How many documents there were.
        """
        self._check_writable()
        if ids is None and filter is None:
            raise ValueError("delete needs ids or a filter; filter={} takes everything out")
        wanted = None if ids is None else _checked_ids(ids)
        condition = filter or {}
        check_filter(condition)
        taken = 0

        def change(dataset: LanceDataset) -> Change:
            nonlocal taken
            rows = self._chosen(dataset, wanted, condition)
            taken = _documents(rows)
            return Change(removed=rows["_rowid"].to_pylist())

        if self._table.latest() is not None:
            self._table.commit(change)
        return taken

    def compact(self, older_than: timedelta = _KEEP) -> None:
        """Merge small files, free what was taken out or replaced, and drop versions older than a time.

        Args:
            older_than: Readers of other processes may still look at younger versions.
        """
        self._check_writable()
        if self._table.latest() is not None:
            with self._table.upkeep():
                self._table.compact(older_than)

    def optimize(self, *, show_progress: bool = False) -> None:
        """Bring keys and indexes up to date. Without that everything is found as well, more slowly.

        Makes indexes over words, ids and contents, and, from `INDEX_ROWS` windows on, over the keys. Rows that are
        added later are found without it; call it again when they have become many.

        Args:
            show_progress: Say on a bar what is being done.
        """
        from tqdm.auto import tqdm

        self._check_writable()
        if self._table.latest() is None:
            return
        with self._table.upkeep():
            refit(self._table)
            with tqdm(desc="keys", unit="row", disable=not show_progress) as bar:
                rewrite_keys(self._table, bar.update)
            with tqdm(desc="indexes", disable=not show_progress) as bar:

                def shown(step: str, done: int, total: int) -> None:
                    bar.set_description(step, refresh=False)
                    bar.n, bar.total = done, total or None
                    bar.refresh()

                build_indexes(self._table, shown)

    def salvage(self) -> list[Broken]:
        """Take the documents of broken files out, so that all others can be read; see `clara_core.store.damage`.

        Returns:
            list: The broken files; without any, nothing was changed.
        """
        self._check_writable()
        return salvage(self._table)

    # --- reading -----------------------------------------------------------------------------------------

    def get(self, ids: Iterable[str]) -> list[Record]:
        """Documents in the order of their ids; unknown ids are passed over."""
        wanted = _checked_ids(ids)
        dataset = self._table.latest()
        if dataset is None:
            return []
        found = {record.id: record for record in records(rows_with(dataset, "id", wanted, RECORD_COLUMNS))}
        return [found[id_] for id_ in wanted if id_ in found]

    def memories(self, ids: Iterable[str]) -> list[Memory]:
        """Memories of documents as the generator reads them, in the order of their ids.

        Raises:
            KeyError: An id is not here.
            FingerprintMismatch: They are of another model than the engine.
        """
        wanted = _checked_ids(ids)
        dataset = self._table.latest()
        found: dict[str, Memory] = {}
        if dataset is not None:
            found = memories_of(dataset, self._layout(dataset), wanted)
        for id_ in wanted:
            if id_ not in found:
                raise KeyError(f"there is no document with the id {id_!r}")
        return [found[id_] for id_ in wanted]

    def count(self, filter: Filter | None = None) -> int:  # noqa: A002
        """How many documents there are, or pass a filter."""
        dataset = self._table.latest()
        if dataset is None:
            return 0
        if filter is None:
            return int(dataset.count_rows("window = 0"))
        return _documents(passing_rows(dataset, filter))

    def __contains__(self, id_: object) -> bool:
        dataset = self._table.latest()
        return dataset is not None and isinstance(id_, str) and bool(rows_with(dataset, "id", [id_], ["window"]))

    def __iter__(self) -> Iterator[Record]:
        """All documents of the moment, in the order in which they came (a replaced one comes last)."""
        dataset = self._table.latest()
        if dataset is None:
            return
        rest: pa.Table | None = None  # the windows of a document may lie in two batches
        for batch in batches(dataset, RECORD_COLUMNS, batch_size=_RECORDS):
            table = pa.Table.from_batches([batch])
            table = table if rest is None else pa.concat_tables([rest, table])
            last = table["id"][-1].as_py()
            heads = [index for index, id_ in enumerate(table["id"].to_pylist()) if id_ == last]
            yield from records(table.slice(0, heads[0]))
            rest = table.slice(heads[0])
        if rest is not None:
            yield from records(rest)

    def stats(self) -> StoreStats:
        """Size and state."""
        return statistics(self._table)

    def close(self) -> None:
        """Let go of what is held in memory; the store may be used again."""
        self._scan = KeyScan()

    # --- within ------------------------------------------------------------------------------------------

    def _layout(self, dataset: LanceDataset) -> Layout:
        layout = Layout.of(dataset.schema, self.uri)
        if self.engine is not None:
            check_engine(self.engine, layout, self.uri)
        return layout

    def _new_layout(self, memories: Sequence[Memory]) -> Layout:
        n_mem, hidden = memory_shape(memories[0])
        layout = Layout(
            memories[0].fingerprint, self._memory_type, n_mem, hidden, Key(n_mem * hidden, self._key_length)
        )
        return layout.fitted(torch.cat([memory.tokens for memory in memories]))

    def _writing_fingerprint(self, memory: Memory | None) -> str:
        if memory is not None:
            if self.engine is not None and self.engine.fingerprint != memory.fingerprint:
                raise FingerprintMismatch(
                    f"the memories are of the model {memory.fingerprint[:12]}, the engine of this store is "
                    f"{self.engine.fingerprint[:12]}: give texts, or open the store with the model that made them"
                )
            return memory.fingerprint
        if self.engine is None:
            raise ValueError("texts have to be compressed: open the store with engine= or model=, or give memories")
        return self.engine.fingerprint

    def _chosen(self, dataset: LanceDataset, ids: Sequence[str] | None, condition: Filter) -> pa.Table:
        """``window`` and ``_rowid`` of the documents with one of the ids that pass a filter."""
        if ids is None:
            return passing_rows(dataset, condition)
        table = rows_with(dataset, "id", ids, ["window"])
        if not condition:
            return table
        passing = passing_rows(dataset, condition)["_rowid"]
        return table.filter(pa.array(np.isin(table["_rowid"].to_numpy(), passing.to_numpy())))

    def _check_writable(self) -> None:
        if self._read_only:
            raise StoreError(f"the store at {self.uri} was opened with read_only=True; open it without to write")


def _documents(rows: pa.Table) -> int:
    return int(np.count_nonzero(rows["window"].to_numpy() == 0))


def _is_sized(values: object) -> bool:
    return values is None or isinstance(values, Sequence)


def _checked_ids(ids: Iterable[str]) -> list[str]:
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise TypeError(f"ids must be several strings, got one {type(ids).__name__}; put it into a list")
    wanted = list(ids)
    for index, id_ in enumerate(wanted):
        if not isinstance(id_, str):
            raise TypeError(f"ids[{index}] must be a string, got {type(id_).__name__}: {id_!r:.60}")
    return wanted
