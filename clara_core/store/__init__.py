"""Memories that last: documents with text, metadata and memory in a Lance table, searched and read again.

Needs the extra ``store``. Importing this package loads neither torch nor Lance; a name is resolved at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

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


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "MemoryStore":
        try:
            import_module("lance")
        except ImportError as exc:
            raise ImportError("a MemoryStore stands on Lance: pip install 'clara-rag[store]'") from exc
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
