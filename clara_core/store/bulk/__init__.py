"""Compresses whole corpora into a store, in one process or with a job on many devices. Needs the extra ``store``.

Importing this package loads neither torch nor Lance; names are resolved at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clara_core.common.lazy import lazy_names

if TYPE_CHECKING:
    from clara_core.store.bulk.fragments import BatchCompressor, FragmentWriter, commit_written, prepare_store
    from clara_core.store.bulk.job import compress_dataset
    from clara_core.store.bulk.shards import Columns

ROWS_PER_SHARD: Final = 16_384  # documents: minutes of GPU time, which are lost if a worker dies

__all__ = ["BatchCompressor", "Columns", "FragmentWriter", "commit_written", "compress_dataset", "prepare_store"]

_MODULES: Final = {
    "BatchCompressor": "clara_core.store.bulk.fragments",
    "Columns": "clara_core.store.bulk.shards",
    "FragmentWriter": "clara_core.store.bulk.fragments",
    "commit_written": "clara_core.store.bulk.fragments",
    "compress_dataset": "clara_core.store.bulk.job",
    "prepare_store": "clara_core.store.bulk.fragments",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES, {"lance": "pip install 'clara-rag[store]'"})
