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
    ServerError,
    ServerOverloaded,
    ServerUnreachable,
    StoreError,
    TrainingError,
    UnknownOption,
    WindowOverflow,
)
from clara_core.common.lazy import lazy_names

if TYPE_CHECKING:
    from clara_core.common.version import __version__
    from clara_core.data.memory import Memory, MemoryCache
    from clara_core.engine.door import open_engine
    from clara_core.engine.engine import ClaraEngine
    from clara_core.engine.protocol import Engine
    from clara_core.engine.sampling import Answer
    from clara_core.model.checkpoint.config import ClaraConfig, Role
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
    "Engine",
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
    "ServerError",
    "ServerOverloaded",
    "ServerUnreachable",
    "StoreError",
    "StoreStats",
    "TrainingError",
    "UnknownOption",
    "WindowOverflow",
    "__version__",
    "open_engine",
]

_MODULES: Final = {
    "Answer": "clara_core.engine.sampling",
    "ClaraConfig": "clara_core.model.checkpoint.config",
    "ClaraEngine": "clara_core.engine.engine",
    "Engine": "clara_core.engine.protocol",
    "Hit": "clara_core.store",
    "Memory": "clara_core.data.memory",
    "MemoryCache": "clara_core.data.memory",
    "MemoryStore": "clara_core.store",
    "Ranked": "clara_core.retrieval.ranking",
    "Record": "clara_core.store",
    "Role": "clara_core.model.checkpoint.config",
    "StoreStats": "clara_core.store",
    "__version__": "clara_core.common.version",
    "open_engine": "clara_core.engine.door",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
