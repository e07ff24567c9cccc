"""LlamaIndex components for CLaRa.

Importing this package loads neither torch nor transformers nor LlamaIndex; names are resolved at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clara_core.common.lazy import lazy_names

if TYPE_CHECKING:
    from clara_core.common.version import __version__
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
    "__version__",
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
    "__version__": "clara_core.common.version",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES, {"llama_index": "pip install 'clara-rag[llama-index]'"})
