"""`MemoryStore`: documents with their memories, in a folder or in memory, that can be searched and read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import chain
from os import PathLike, fspath
from typing import Any, Final

from clara_core.common.errors import StoreError
from clara_core.common.place import IN_MEMORY
from clara_core.common.suggest import parameters, refuse_unknown
from clara_core.data.memory import Memory
from clara_core.engine.door import is_server
from clara_core.engine.options import OPTIONS, given_options
from clara_core.engine.protocol import Engine
from clara_core.store.backend import Backend, reads, writes
from clara_core.store.codec import MEMORY_TYPES, MemoryType
from clara_core.store.keys import DEFAULT_LENGTH
from clara_core.store.records import Broken, Record, StoreStats, checked_ids, in_order
from clara_core.store.search import Filter, StoreSearch, check_condition
from clara_core.store.writing import Document, Writer, checked_documents, fidelity_measure, written_fingerprint

_KEEP: Final = timedelta(hours=1)  # old versions are kept this long for readers in other processes


class MemoryStore(StoreSearch):
    """Documents by id with text, metadata and memory. Safe under threads and beside other processes.

    Use `open` to create one. A store can be pickled and copied: a copy of a store in a folder opens the same folder,
    and a copy of a store in memory contains its documents.
    """

    def __init__(self, backend: Backend, engine: Engine | None, *, read_only: bool) -> None:
        self._backend = backend
        self.engine = engine
        self._read_only = read_only

    @classmethod
    def open(
        cls,
        uri: str | PathLike[str],
        engine: Engine | None = None,
        *,
        model: str | None = None,
        memory_type: MemoryType | None = None,
        key: int = DEFAULT_LENGTH,
        read_only: bool = False,
        storage_options: Mapping[str, str] | None = None,
        **options: Any,
    ) -> MemoryStore:
        """Open a store; the first `add` creates it if it does not exist. Neither loads a model.

        Args:
            uri: A folder (``~`` is the home folder; a relative path is resolved at this call); ``memory://`` for a
                store that ends with this object; the address of an object store, such as ``s3://bucket/path``; or a
                store on a server, ``http://host:port/v1/stores/NAME``.
            engine: Compresses texts and reads questions. Without `engine` and `model`, the store can still add and
                return compressed memories and search texts by words.
            model: Model of the engine to open, as in `ClaraEngine.from_pretrained`; instead of `engine`.
            memory_type: Number format in a new store: ``float32`` (the default in memory), ``bfloat16`` (the
                default in a folder), or ``int8``, which takes half the bytes of bfloat16.
            key: Numbers of a key in a new store.
            read_only: Refuse to write.
            storage_options: Credentials and settings of the object store.
            **options: Options of the engine of `model`, as in `ClaraEngine.from_pretrained`, such as
                ``compression=16``.

        Raises:
            UnknownOption: Neither this function nor an engine has the option.
            StoreError: The store cannot be read, or does not exist and `read_only` is set.
        """
        if is_server(uri) and (memory_type, storage_options) != (None, None):
            raise ValueError(f"memory_type= and storage_options= are set by {fspath(uri)}: leave them out")
        refuse_unknown("MemoryStore.open", options, [*OPTIONS, *parameters(cls.open)])
        given = given_options({"model": model, **options})
        if engine is not None and given:
            raise ValueError(f"give engine= or {given[0]}=, not both: an engine has its own model and options")
        if model is None and given:
            raise ValueError(f"{given[0]}= is an option of the engine of a model: give model=, too")
        if memory_type is not None and memory_type not in MEMORY_TYPES:
            raise ValueError(f"memory_type must be one of {', '.join(MEMORY_TYPES)}, got {memory_type!r}")
        if model is not None:
            from clara_core.engine.door import open_engine

            engine = open_engine(model, **options)
        if is_server(uri):
            from clara_core.store.remote import RemoteStore

            return RemoteStore(fspath(uri), engine, read_only=read_only)
        backend = _place(fspath(uri), memory_type, key, storage_options)
        if read_only and backend.latest() is None:
            raise StoreError(f"there is no store at {backend.uri}; write one first, without read_only=True")
        return cls(backend, engine, read_only=read_only)

    @property
    def uri(self) -> str:
        """Address of the store."""
        return self._backend.uri

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the model whose memories the store holds; None if it holds none."""
        snapshot = self._backend.latest()
        return None if snapshot is None else snapshot.space.fingerprint

    def __repr__(self) -> str:
        return f"MemoryStore({self.uri!r})"

    def __len__(self) -> int:
        return self.count()

    def __bool__(self) -> bool:
        return True  # an empty store is true, too

    # --- writing -----------------------------------------------------------------------------------------

    def add(
        self,
        texts: Iterable[str] | None = None,
        metadatas: Iterable[dict[str, Any] | None] | None = None,
        ids: Iterable[str | None] | None = None,
        memories: Iterable[Memory] | None = None,
        *,
        vectors: Iterable[Any] | None = None,
        fidelity: bool = False,
        show_progress: bool = False,
    ) -> list[str]:
        """Add documents; a document with a known id replaces the stored one.

        Sequences are checked as a whole before anything is written; iterators are checked batch by batch. Documents
        that the progress bar has counted are safe whatever happens next, and so are all documents once the call
        returns.

        A text that the store already holds, under any id, is not compressed again. A blank text is stored, but not
        found.

        Args:
            texts: Any number of documents; optional if there are memories.
            metadatas: A dict for each document, see `clara_core.store.records.metadata_json`.
            ids: An id for each document; None for an id made from the text.
            memories: A compressed memory for each document.
            vectors: Instead of memories, vectors of another embedding: ``[D]``, or ``[W, D]`` for the windows of a
                text.
            fidelity: Write into the field ``fidelity`` of the metadata which share of its names, numbers and code each
                memory has kept (`Fidelity.kept`), for filters. Takes about as long as compressing.
            show_progress: Draw a progress bar.

        Returns:
            list: The ids, in order.

        Raises:
            ValueError: `fidelity` without a model in this process.
            FingerprintMismatch: The memories are of another model than those in the store.
            StoreError: Other writers were faster every time.
        """
        from tqdm.auto import tqdm

        self._check_writable()
        given = checked_documents(texts, metadatas, ids, memories, vectors)
        parts = (texts, metadatas, ids, memories, vectors)
        documents = list(given) if all(part is None or isinstance(part, Sequence) for part in parts) else given
        total = len(documents) if isinstance(documents, list) else None
        written: list[str] = []
        with tqdm(total=total, desc="storing", unit="doc", disable=not show_progress) as bar:
            for safe in self._write(iter(documents), vectors, fidelity=fidelity):
                written += safe
                bar.update(len(safe))
        return written

    def _write(self, documents: Iterator[Document], vectors: object, *, fidelity: bool) -> Iterator[list[str]]:
        """Write documents; yields after each batch the ids of its documents, which are now safe."""
        measure = fidelity_measure(self.engine, vectors) if fidelity else None
        if (first := next(documents, None)) is not None:
            fingerprint = written_fingerprint(self.engine, first.memory)
            yield from Writer(self._backend, self.engine, fingerprint, measure).write(chain([first], documents))

    @writes
    def delete(self, ids: Iterable[str] | None = None, filter: Filter | None = None) -> int:  # noqa: A002
        """Delete the documents with one of the ids, those that pass the filter, or, with both, those that meet both.

        Args:
            ids: Unknown ids are ignored.
            filter: As in `search`; ``{}`` means every document.

        Returns:
            int: Number of deleted documents.
        """
        wanted = self._to_delete(ids, filter)
        if callable(filter):
            records = self if wanted is None else self.get(wanted)
            return self._backend.delete([record.id for record in records if filter(record)], None)
        return self._backend.delete(wanted, filter)

    @writes
    def compact(self, older_than: timedelta = _KEEP) -> None:
        """Merge small files, free the space of deleted and replaced documents, and delete old versions.

        Args:
            older_than: Versions that were replaced more recently are kept for readers in other processes.
        """
        self._check_writable()
        self._backend.compact(older_than)

    @writes
    def optimize(self, *, show_progress: bool = False) -> None:
        """Update keys and indexes. This makes searches faster and does not change what they find.

        Builds indexes over ids, contents and facts, and, from `INDEX_ROWS` documents on, over words and keys. Documents
        added later are found without it; call it again after adding many.

        Args:
            show_progress: Show the current step on a progress bar.
        """
        self._check_writable()
        self._shown(self._backend.optimize, show_progress)

    @writes
    def check(self, *, show_progress: bool = False) -> list[Broken]:
        """Read everything in the store, and return the files that cannot be read."""
        found: list[Broken] = self._shown(self._backend.check, show_progress)
        return found

    @writes
    def salvage(self, *, show_progress: bool = False) -> list[Broken]:
        """Delete the documents of broken files, so that all others can be read. Reads everything in the store.

        Returns:
            list: The broken files; if there are none, nothing was changed.
        """
        self._check_writable()
        found: list[Broken] = self._shown(self._backend.salvage, show_progress)
        return found

    @staticmethod
    def _shown(work: Any, show_progress: bool) -> Any:
        from tqdm.auto import tqdm

        with tqdm(disable=not show_progress) as bar:

            def report(step: str, done: int, total: int) -> None:
                bar.set_description(step, refresh=False)
                bar.n, bar.total = done, total or None
                bar.refresh()

            return work(report)

    # --- reading -----------------------------------------------------------------------------------------

    @reads
    def get(self, ids: Iterable[str]) -> list[Record]:
        """Documents in the order of their ids; unknown ids are ignored."""
        wanted = checked_ids(ids)
        snapshot = self._backend.latest()
        found = {} if snapshot is None or not wanted else snapshot.records(wanted)
        return [found[id_] for id_ in wanted if id_ in found]

    @reads
    def memories(self, ids: Iterable[str]) -> list[Memory]:
        """Memories of documents, for the generator, in the order of their ids.

        Raises:
            KeyError: The store has no document with an id.
            FingerprintMismatch: The memories are of another model than the engine.
        """
        wanted = checked_ids(ids)
        snapshot = self._backend.latest()
        if snapshot is not None and self.engine is not None:
            snapshot.space.check_model(self.engine.fingerprint, self.uri)
        found = {} if snapshot is None or not wanted else snapshot.memories(wanted)
        return in_order(wanted, found)

    @reads
    def count(self, filter: Filter | None = None) -> int:  # noqa: A002
        """Number of documents, or of those that pass a filter."""
        check_condition(filter)
        snapshot = self._backend.latest()
        if snapshot is None:
            return 0
        if callable(filter):
            return sum(1 for record in snapshot if filter(record))
        return snapshot.count() if filter is None else len(snapshot.passing(filter))

    @reads
    def __contains__(self, id_: object) -> bool:
        snapshot = self._backend.latest()
        return snapshot is not None and isinstance(id_, str) and bool(snapshot.states([id_]))

    @reads
    def __iter__(self) -> Iterator[Record]:
        """All documents of the latest version, in the order of adding (a replaced document comes last)."""
        snapshot = self._backend.latest()
        return iter(() if snapshot is None else snapshot)

    @reads
    def stats(self) -> StoreStats:
        """Size and state."""
        snapshot = self._backend.latest()
        return StoreStats() if snapshot is None else snapshot.stats()

    def close(self) -> None:
        """Drop caches; the store may be used again."""
        self._backend.close()

    # --- within ------------------------------------------------------------------------------------------

    def _to_delete(self, ids: Iterable[str] | None, condition: Filter | None) -> list[str] | None:
        """The ids of a `delete`, checked like its filter."""
        self._check_writable()
        if ids is None and condition is None:
            raise ValueError("delete needs ids or a filter; filter={} deletes all documents")
        check_condition(condition)
        return None if ids is None else checked_ids(ids)

    def _check_writable(self) -> None:
        if self._read_only:
            raise StoreError(f"the store at {self.uri} was opened with read_only=True; open it without read_only")


def _place(uri: str, memory_type: MemoryType | None, key: int, options: Mapping[str, str] | None) -> Backend:
    if uri.startswith(IN_MEMORY):
        from clara_core.store.in_memory import InMemory

        return InMemory(memory_type=memory_type or "float32")
    try:
        from clara_core.store.on_lance import OnLance
    except ImportError as exc:
        raise ImportError(f"a store at {uri!r} needs Lance: pip install 'clara-rag[store]'") from exc
    return OnLance(uri, memory_type or "bfloat16", key, dict(options) if options else None)
