"""The backend on a Lance table, in a folder or at an address of an object store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import pyarrow as pa
import torch

from clara_core.common.errors import StoreError
from clara_core.store import integrity, maintenance
from clara_core.store.backend import Entry, Report, Space
from clara_core.store.codec import MemoryType
from clara_core.store.keys import Key
from clara_core.store.predicate import passing
from clara_core.store.reading import readable
from clara_core.store.records import Broken, escape
from clara_core.store.scan import KeyScan, WordScan
from clara_core.store.schema import FIT_ROWS, Layout, Serials
from clara_core.store.snapshot import LanceSnapshot
from clara_core.store.table import Table

_SERIALS: Final = Serials()


class OnLance:
    """The backend on a Lance table; see `clara_core.store.backend.Backend`.

    A pickle contains only its address and settings.

    Args:
        uri: A folder, or the address of an object store.
        memory_type: Number format of memories in a new table.
        key_length: Numbers of a key in a new table.
        storage_options: Credentials and settings of the object store.

    Raises:
        StoreError: The address holds something other than a store, or cannot be read.
    """

    def __init__(
        self, uri: str, memory_type: MemoryType, key_length: int, storage_options: dict[str, str] | None = None
    ) -> None:
        self._table = Table(uri, storage_options)
        self._memory_type: MemoryType = memory_type
        self._key_length = key_length
        self._maintenance = maintenance.Maintenance(self._table)
        self.close()
        self.latest()

    def __reduce__(self) -> tuple[Any, ...]:
        return OnLance, (self.uri, self._memory_type, self._key_length, self._table.storage_options)

    @property
    def uri(self) -> str:
        return self._table.uri

    def latest(self) -> LanceSnapshot | None:
        if self._pid != os.getpid():  # in a forked child, locks held by other threads of its parent are never released
            self.close()
        dataset = self._table.latest()
        if dataset is None:
            return None
        return LanceSnapshot(dataset, Layout.of(dataset.schema, self.uri), self._keys, self._words)

    # --- writing -----------------------------------------------------------------------------------------

    def put(self, entries: Sequence[Entry]) -> None:
        if (dataset := self._table.latest()) is None:
            dataset = self._table.create(self._new_layout(entries).schema)
        layout = Layout.of(dataset.schema, self.uri)
        layout.space.check(entries, self.uri)
        self._table.merge(pa.Table.from_batches([layout.rows(entries, _SERIALS.take(len(entries)))]))
        self._maintenance.committed()
        if layout.fitted_to < FIT_ROWS:
            maintenance.refit(self._table)

    def _new_layout(self, entries: Sequence[Entry]) -> Layout:
        memories = [entry.memory for entry in entries]
        n_mem, hidden = (int(size) for size in memories[0].tokens.shape[1:])
        space = Space(memories[0].fingerprint, self._memory_type, n_mem, hidden)
        space.check(entries, self.uri)
        layout = Layout(space, Key(n_mem * hidden, self._key_length))
        tokens = torch.cat([memory.tokens for memory in memories])
        return layout.fitted(tokens) if len(tokens) else layout

    def delete(self, ids: Sequence[str] | None, condition: Mapping[str, Any] | None) -> int:
        if (dataset := self._table.latest()) is None:
            return 0
        chosen = None if ids is None else set(map(escape, ids))
        if condition:
            with readable(dataset):
                passes = set(passing(dataset, condition, ["id"])["id"].to_pylist())
            chosen = passes if chosen is None else chosen & passes
        if chosen is None:
            count = self._table.remove_where("true")
        else:
            count = self._table.remove(pa.table({"id": list(chosen)})) if chosen else 0
        if count:
            self._maintenance.committed()
        return count

    # --- maintenance -------------------------------------------------------------------------------------

    def compact(self, older_than: timedelta) -> None:
        self._maintenance.wait()
        maintenance.compact(self._table, older_than)

    def optimize(self, report: Report) -> None:
        report("keys", 0, 0)
        maintenance.refit(self._table)
        maintenance.rewrite_keys(self._table, lambda done: report("keys", done, 0))
        maintenance.build_indexes(self._table, report)

    def check(self, report: Report) -> list[Broken]:
        dataset = self._table.latest()
        return [] if dataset is None else integrity.broken_files(dataset, report)

    def salvage(self, report: Report) -> list[Broken]:
        return integrity.salvage(self._table, report)

    def explain(self, error: BaseException) -> StoreError | None:
        return integrity.meaning(self._table, error)

    def close(self) -> None:
        self._pid, self._keys, self._words = os.getpid(), KeyScan(), WordScan()
