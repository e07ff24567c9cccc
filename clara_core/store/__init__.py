"""Persistent memories: documents with text, metadata and memory in a Lance table, to be searched and read again.

Needs the extra ``store``. Importing this package loads neither torch nor Lance; names are resolved at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clara_core.common.lazy import lazy_names

if TYPE_CHECKING:
    from clara_core.store.records import Hit, Record, StoreStats
    from clara_core.store.store import MemoryStore

__all__ = ["Hit", "MemoryStore", "Record", "StoreStats"]

_MODULES: Final = {
    "Hit": "clara_core.store.records",
    "MemoryStore": "clara_core.store.store",
    "Record": "clara_core.store.records",
    "StoreStats": "clara_core.store.records",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES, {"lance": "pip install 'clara-rag[store]'"})
