"""CLaRa for LlamaIndex.

Importing this package loads neither torch nor transformers nor LlamaIndex; a name is resolved at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llama_index_clara.embeddings import ClaraEmbedding
    from llama_index_clara.llms import ClaraLLM
    from llama_index_clara.node_parser import ClaraNodeParser
    from llama_index_clara.postprocessor import ClaraRerank, RerankedNode
    from llama_index_clara.query_engine import ClaraQueryEngine
    from llama_index_clara.response_synthesizers import ClaraSynthesizer
    from llama_index_clara.retrievers import ClaraRetriever
    from llama_index_clara.vector_stores import ClaraVectorStore

__all__ = [
    "ClaraEmbedding",
    "ClaraLLM",
    "ClaraNodeParser",
    "ClaraQueryEngine",
    "ClaraRerank",
    "ClaraRetriever",
    "ClaraSynthesizer",
    "ClaraVectorStore",
    "RerankedNode",
]

_MODULES: Final = {
    "ClaraEmbedding": "llama_index_clara.embeddings",
    "ClaraLLM": "llama_index_clara.llms",
    "ClaraNodeParser": "llama_index_clara.node_parser",
    "ClaraQueryEngine": "llama_index_clara.query_engine",
    "ClaraRerank": "llama_index_clara.postprocessor",
    "ClaraRetriever": "llama_index_clara.retrievers",
    "ClaraSynthesizer": "llama_index_clara.response_synthesizers",
    "ClaraVectorStore": "llama_index_clara.vector_stores",
    "RerankedNode": "llama_index_clara.postprocessor",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(_MODULES[name]), name)
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "llama_index":
            raise
        raise ImportError(f"{name} needs LlamaIndex: pip install 'clara-rag[llama-index]'") from exc
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
