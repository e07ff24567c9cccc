"""`MemoryStore`: documents with their memories in a folder, to be searched and read again by any process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Final, overload

import torch
from torch import Tensor

from clara_core.errors import FingerprintMismatch, StoreError
from clara_core.memory import Memory
from clara_core.store import search as _search
from clara_core.store.codec import MEMORY_TYPES, MemoryType
from clara_core.store.damage import Broken, explaining
from clara_core.store.damage import salvage as _salvage
from clara_core.store.keys import DEFAULT_LENGTH, Key
from clara_core.store.reading import batches, passing_rows, rows_with
from clara_core.store.records import Hit, Record, StoreStats
from clara_core.store.scan import KeyScan
from clara_core.store.schema import RECORD_COLUMNS, Layout, memory_shape, records
from clara_core.store.search import Found, Mode, Snapshot
from clara_core.store.table import Change, Table
from clara_core.store.writing import Writer, checked_documents, memories_of

if TYPE_CHECKING:
    from lance import LanceDataset

    from clara_core.engine import ClaraEngine

DEFAULT_MODE: Final[Mode] = "hybrid"
DEFAULT_OVERSAMPLE: Final = 10
DEFAULT_TEXT_WEIGHT: Final = 0.5

_RECORDS: Final = 1024  # rows that are read at a time
_KEEP: Final = timedelta(hours=1)  # how long readers of other processes may hold an old version

Filter = Mapping[str, Any]


@explaining(
    "add", "delete", "compact", "optimize", "get", "memories", "count", "__contains__", "__iter__", "stats", "search",
    "search_mmr",
)  # fmt: skip
class MemoryStore:
    """Documents by id with text, metadata and memory, on disk. Safe under threads and beside other processes.

    Make one with `open`.
    """

    def __init__(self, table: Table, engine: ClaraEngine | None, memory_type: MemoryType, key: int, read_only: bool):
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

        Raises:
            StoreError: What is there cannot be read, or nothing is there and `read_only` is given.
        """
        if engine is not None and model is not None:
            raise ValueError(f"give engine= or model=, not both; got model={model!r}")
        if memory_type not in MEMORY_TYPES:
            raise ValueError(f"memory_type must be one of {', '.join(MEMORY_TYPES)}, got {memory_type!r}")
        if model is not None:
            from clara_core.engine import ClaraEngine

            engine = ClaraEngine.from_pretrained(model)
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
        taken = 0

        def change(dataset: LanceDataset) -> Change:
            nonlocal taken
            rows = self._chosen(dataset, wanted, filter)
            taken = rows[1]
            return Change(removed=rows[0])

        if self._table.latest() is not None:
            self._table.commit(change)
        return taken

    def compact(self, older_than: timedelta = _KEEP) -> None:
        """Merge small files, free what was taken out or replaced, and drop versions older than a time.

        Args:
            older_than: Readers of other processes may still look at younger versions.
        """
        self._check_writable()
        self._table.compact(older_than)

    def optimize(self, *, show_progress: bool = False) -> None:
        """Bring the indexes up to date. Without that, everything is found as well, more slowly."""
        self._check_writable()
        if (dataset := self._table.latest()) is not None:
            dataset.checkout_version(dataset.version).optimize.optimize_indices()

    def salvage(self) -> list[Broken]:
        """Take out the documents whose files are broken, so that the others can be read again.

        Returns:
            list: The broken files; without any, nothing was changed.
        """
        self._check_writable()
        return _salvage(self._table)

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
        return self._chosen(dataset, None, filter)[1]

    def __contains__(self, id_: object) -> bool:
        dataset = self._table.latest()
        return dataset is not None and isinstance(id_, str) and bool(rows_with(dataset, "id", [id_], ["window"]))

    def __iter__(self) -> Iterator[Record]:
        """All documents of the moment, in the order in which they came (a replaced one comes last)."""
        dataset = self._table.latest()
        if dataset is None:
            return
        import pyarrow as pa

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
        dataset = self._table.latest()
        if dataset is None:
            return StoreStats(0, 0, 0, 0.0, 0, 0, None, None, None, 0, None)
        layout = Layout.of(dataset.schema, self.uri)
        documents, rows = int(dataset.count_rows("window = 0")), int(dataset.count_rows())
        fragments = dataset.get_fragments()
        size = sum(file.file_size_bytes or 0 for fragment in fragments for file in fragment.metadata.files)
        return StoreStats(
            documents, rows, size, size / documents if documents else 0.0, len(fragments), dataset.version,
            layout.fingerprint, layout.memory_type, layout.key.length, 0, None,
        )  # fmt: skip

    # --- searching ---------------------------------------------------------------------------------------

    @overload
    def search(
        self, question: str, k: int = ..., *, filter: Filter | None = ..., mode: Mode | None = ..., exact: bool = ...,
        oversample: int = ..., text_weight: float = ...,
    ) -> list[Hit]: ...  # fmt: skip

    @overload
    def search(
        self, question: Sequence[str], k: int = ..., *, filter: Filter | None = ..., mode: Mode | None = ...,
        exact: bool = ..., oversample: int = ..., text_weight: float = ...,
    ) -> list[list[Hit]]: ...  # fmt: skip

    @overload
    def search(
        self, question: Tensor, k: int = ..., *, filter: Filter | None = ..., mode: Mode | None = ...,
        exact: bool = ..., oversample: int = ..., text_weight: float = ...,
    ) -> list[Hit] | list[list[Hit]]: ...  # fmt: skip

    def search(
        self,
        question: str | Sequence[str] | Tensor,
        k: int = 4,
        *,
        filter: Filter | None = None,  # noqa: A002
        mode: Mode | None = None,
        exact: bool = False,
        oversample: int = DEFAULT_OVERSAMPLE,
        text_weight: float = DEFAULT_TEXT_WEIGHT,
    ) -> list[Hit] | list[list[Hit]]:
        """The documents that answer a question best, best first; of several questions a list each.

        Args:
            question: A question, several, or what the query reasoner made of them: ``[D]`` for one,
                ``[Q, n_mem, hidden]`` or ``[Q, D]`` for several, ``D = n_mem * hidden``.
            k: Most documents to find.
            filter: Which documents may be found, as in `clara_core.filters`.
            mode: ``memory`` by cosine, ``text`` by words (BM25), ``hybrid`` by both; None is ``hybrid`` for texts and
                ``memory`` for tensors.
            exact: Compare with all memories instead of the best ``oversample * k`` by their keys.
            oversample: How many candidates by key for one document.
            text_weight: Weight of the words in ``hybrid``, in [0, 1].
        """
        asked, one = _questions(question)
        mode = mode or (DEFAULT_MODE if isinstance(asked, list) else "memory")
        _check_search(k, mode, oversample, text_weight, isinstance(asked, list))
        dataset = self._table.latest()
        if dataset is None:
            return [] if one else [[] for _ in range(len(asked))]
        found = self._found(self._snapshot(dataset, filter), asked, k, mode, exact, oversample, text_weight)
        result = _search.hits(dataset, found)
        return result[0] if one else result

    def search_mmr(
        self,
        question: str | Tensor,
        k: int = 4,
        *,
        fetch_k: int = 20,
        balance: float = 0.5,
        filter: Filter | None = None,  # noqa: A002
        exact: bool = False,
        oversample: int = DEFAULT_OVERSAMPLE,
    ) -> list[Hit]:
        """Of the `fetch_k` documents most like a question `k` that do not repeat each other.

        Args:
            question: As in `search`, one.
            k: Most documents to find.
            fetch_k: How many to choose from.
            balance: 1 is relevance alone, 0 is diversity alone.
            filter: As in `search`.
            exact: As in `search`.
            oversample: As in `search`.

        Returns:
            list: In the order of choice; scores are cosines.
        """
        from clara_core.ranking import diversify

        asked, one = _questions(question)
        if not one:
            raise ValueError("search_mmr takes one question")
        _check_search(k, "memory", oversample, 0.0, isinstance(asked, list))
        dataset = self._table.latest()
        if dataset is None:
            return []
        snapshot = self._snapshot(dataset, filter)
        vectors = self._question_vectors(asked, snapshot.layout)
        found = self._by_memory(snapshot, vectors, max(k, fetch_k), exact, oversample)[0]
        if not found:
            return []
        from clara_core.store.reading import rows_at

        taken = rows_at(dataset, [document.row for document in found], ["memory"])
        place = {row: index for index, row in enumerate(taken["_rowid"].to_pylist())}
        tokens = snapshot.layout.tokens(taken["memory"]).flatten(1)[[place[document.row] for document in found]]
        chosen = diversify(vectors[0].flatten(), tokens, k, balance)
        return _search.hits(dataset, [[found[index] for index in chosen]])[0]

    def close(self) -> None:
        """Let go of what is held in memory; the store may be used again."""
        self._scan = KeyScan()

    # --- within ------------------------------------------------------------------------------------------

    def _found(
        self,
        snapshot: Snapshot,
        asked: list[str] | Tensor,
        k: int,
        mode: Mode,
        exact: bool,
        oversample: int,
        text_weight: float,
    ) -> list[list[Found]]:
        if not len(asked):
            return []
        depth = k if mode != "hybrid" else max(4 * k, 50)
        words: list[list[Found]] = []
        if mode != "memory":
            words = [_search.by_text(snapshot, question, depth) for question in asked]  # type: ignore[arg-type]
            if mode == "text":
                return words
        memory = self._by_memory(snapshot, self._question_vectors(asked, snapshot.layout), depth, exact, oversample)
        if mode == "memory":
            return memory
        return [_search.fused(*both, text_weight, k) for both in zip(memory, words, strict=True)]

    def _by_memory(
        self, snapshot: Snapshot, questions: Tensor, k: int, exact: bool, oversample: int
    ) -> list[list[Found]]:
        if snapshot.allowed is not None and not len(snapshot.allowed):
            return [[] for _ in questions]
        if exact:
            return _search.by_everything(snapshot, questions, k)
        return _search.by_memory(snapshot, self._scan.at(snapshot.dataset), questions, k, oversample)

    def _snapshot(self, dataset: LanceDataset, condition: Filter | None) -> Snapshot:
        allowed = None if condition is None else passing_rows(dataset, condition)
        return Snapshot(dataset, Layout.of(dataset.schema, self.uri), allowed)

    def _question_vectors(self, asked: list[str] | Tensor, layout: Layout) -> Tensor:
        """``[Q, n_mem, hidden]``."""
        if isinstance(asked, Tensor):
            dimension = layout.n_mem * layout.hidden
            if asked.numel() != len(asked) * dimension:
                raise ValueError(f"questions for this store have {layout.n_mem} x {layout.hidden} = {dimension} "
                                 f"numbers, got the shape {list(asked.shape)}")  # fmt: skip
            return asked.reshape(len(asked), layout.n_mem, layout.hidden)
        return self._reader("search by memory", layout).reason(asked)

    def _reader(self, purpose: str, layout: Layout) -> ClaraEngine:
        """The engine, if it is of the store's model.

        Raises:
            ValueError: There is none.
            FingerprintMismatch: It is of another.
        """
        if self.engine is None:
            raise ValueError(f"{purpose} needs a model: open the store with engine= or model=")
        if self.engine.fingerprint != layout.fingerprint:
            raise FingerprintMismatch(
                f"the store at {self.uri} holds memories of the model {layout.fingerprint[:12]}, the engine is "
                f"{self.engine.fingerprint[:12]}: open it with the model that wrote it, or add its texts to a store "
                'in another folder with this one; mode="text" works as it is'
            )
        return self.engine

    def _layout(self, dataset: LanceDataset) -> Layout:
        layout = Layout.of(dataset.schema, self.uri)
        if self.engine is not None:
            self._reader("memories", layout)
        return layout

    def _new_layout(self, memories: Sequence[Memory]) -> Layout:
        n_mem, hidden = memory_shape(memories[0])
        tokens = torch.cat([memory.tokens for memory in memories])
        key = Key(n_mem * hidden, self._key_length).fitted(tokens)
        return Layout(memories[0].fingerprint, self._memory_type, n_mem, hidden, key)

    def _writing_fingerprint(self, memory: Memory | None) -> str:
        if memory is not None:
            return memory.fingerprint
        if self.engine is None:
            raise ValueError("texts have to be compressed: open the store with engine= or model=, or give memories")
        return self.engine.fingerprint

    def _chosen(
        self, dataset: LanceDataset, ids: Sequence[str] | None, condition: Filter | None
    ) -> tuple[list[int], int]:
        """Row ids of the documents with one of the ids that pass a filter, and how many documents they are."""
        import numpy as np

        if ids is not None:
            table = rows_with(dataset, "id", ids, ["window"])
            if condition is not None:
                passing = passing_rows(dataset, condition)
                import pyarrow as pa

                table = table.filter(pa.array(np.isin(table["_rowid"].to_numpy(), passing)))
        else:
            from clara_core.store.predicate import passing as passing_table

            table = passing_table(dataset, condition or {}, ["window"])
        windows = table["window"].to_numpy()
        return table["_rowid"].to_pylist(), int((windows == 0).sum())

    def _check_writable(self) -> None:
        if self._read_only:
            raise StoreError(f"the store at {self.uri} was opened with read_only=True; open it without to write")


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


def _questions(question: str | Sequence[str] | Tensor) -> tuple[list[str] | Tensor, bool]:
    """The questions as several, and whether it was one."""
    if isinstance(question, str):
        return [question], True
    if isinstance(question, Tensor):
        return (question[None], True) if question.ndim == 1 else (question, False)
    return list(question), False


def _check_search(k: int, mode: str, oversample: int, text_weight: float, words: bool) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if mode not in ("memory", "text", "hybrid"):
        raise ValueError(f"mode must be memory, text or hybrid, got {mode!r}")
    if mode != "memory" and not words:
        raise ValueError(f"mode={mode!r} needs the words of the question, got a tensor; use mode='memory'")
    if oversample < 1:
        raise ValueError(f"oversample must be at least 1, got {oversample}")
    if not 0.0 <= text_weight <= 1.0:
        raise ValueError(f"text_weight must lie in [0, 1], got {text_weight}")
