"""CLaRa as a library: a document becomes memory tokens once, which are searched, ranked and read.

Importing this package loads neither torch nor transformers; a name is resolved at its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clara_core.common.errors import (
    CheckpointError,
    ClaraError,
    ContextOverflow,
    DataError,
    EngineClosed,
    FingerprintMismatch,
    LLMError,
    NotEnoughMemory,
    RoleError,
    StoreError,
    TrainingError,
    UnknownOption,
    WindowOverflow,
)
from clara_core.common.lazy import lazy_names

if TYPE_CHECKING:
    from clara_core.checkpoint.config import ClaraConfig, Role
    from clara_core.common.version import __version__
    from clara_core.data.memory import Memory, MemoryCache
    from clara_core.engine.engine import Answer, ClaraEngine
    from clara_core.retrieval.ranking import Ranked
    from clara_core.store import Hit, MemoryStore, Record, StoreStats

__all__ = [
    "Answer",
    "CheckpointError",
    "ClaraConfig",
    "ClaraEngine",
    "ClaraError",
    "ContextOverflow",
    "DataError",
    "EngineClosed",
    "FingerprintMismatch",
    "Hit",
    "LLMError",
    "Memory",
    "MemoryCache",
    "MemoryStore",
    "NotEnoughMemory",
    "Ranked",
    "Record",
    "Role",
    "RoleError",
    "StoreError",
    "StoreStats",
    "TrainingError",
    "UnknownOption",
    "WindowOverflow",
    "__version__",
]

_MODULES: Final = {
    "Answer": "clara_core.engine.engine",
    "ClaraConfig": "clara_core.checkpoint.config",
    "ClaraEngine": "clara_core.engine.engine",
    "Hit": "clara_core.store",
    "Memory": "clara_core.data.memory",
    "MemoryCache": "clara_core.data.memory",
    "MemoryStore": "clara_core.store",
    "Ranked": "clara_core.retrieval.ranking",
    "Record": "clara_core.store",
    "Role": "clara_core.checkpoint.config",
    "StoreStats": "clara_core.store",
    "__version__": "clara_core.common.version",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
