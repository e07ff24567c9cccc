"""LangChain components for CLaRa.

Importing this package loads neither torch nor transformers; names are resolved at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clara_core.common.lazy import lazy_names

if TYPE_CHECKING:
    from clara_core.common.version import __version__
    from langchain_clara.chains import create_clara_documents_chain
    from langchain_clara.chat_models import ChatClara
    from langchain_clara.citations import cited_documents
    from langchain_clara.cross_encoder import ClaraCrossEncoder
    from langchain_clara.embeddings import ClaraEmbeddings
    from langchain_clara.middleware import ClaraContextMiddleware
    from langchain_clara.prompts import DocumentsPlaceholder
    from langchain_clara.rerank import ClaraRerank
    from langchain_clara.retrievers import ClaraRetriever
    from langchain_clara.self_query import ClaraTranslator
    from langchain_clara.text_splitter import ClaraTextSplitter
    from langchain_clara.vectorstores import ClaraVectorStore

__all__ = [
    "ChatClara",
    "ClaraContextMiddleware",
    "ClaraCrossEncoder",
    "ClaraEmbeddings",
    "ClaraRerank",
    "ClaraRetriever",
    "ClaraTextSplitter",
    "ClaraTranslator",
    "ClaraVectorStore",
    "DocumentsPlaceholder",
    "__version__",
    "cited_documents",
    "create_clara_documents_chain",
]

_MODULES: Final = {
    "ChatClara": "langchain_clara.chat_models",
    "ClaraContextMiddleware": "langchain_clara.middleware",
    "ClaraCrossEncoder": "langchain_clara.cross_encoder",
    "ClaraEmbeddings": "langchain_clara.embeddings",
    "ClaraRerank": "langchain_clara.rerank",
    "ClaraRetriever": "langchain_clara.retrievers",
    "ClaraTextSplitter": "langchain_clara.text_splitter",
    "ClaraTranslator": "langchain_clara.self_query",
    "ClaraVectorStore": "langchain_clara.vectorstores",
    "DocumentsPlaceholder": "langchain_clara.prompts",
    "__version__": "clara_core.common.version",
    "cited_documents": "langchain_clara.citations",
    "create_clara_documents_chain": "langchain_clara.chains",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES, {"langchain_core": "pip install 'clara-rag[langchain]'"})
