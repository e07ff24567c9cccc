"""LangChain's standard test suites from `langchain-tests`."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from langchain_tests.integration_tests import (
    ChatModelIntegrationTests,
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests

from langchain_clara import ChatClara, ClaraEmbeddings, ClaraRetriever, ClaraVectorStore
from tests.langchain.data import bundled_or_tiny
from tests.served import served_options

PASSAGES = (
    "Tolmet Bridge was opened in 1907.",
    "Weldenia is a genus of flowering plants.",
    "The lighthouse of Aln stands on a rock.",
    "Brandt & Sons make clocks, barometers and maps.",
)


class TestChatModelUnit(ChatModelUnitTests):
    supports_model_override = False
    # `bind_tools` and `with_structured_output` are overridden to refuse their arguments.
    has_tool_calling = False
    has_structured_output = False

    @property
    def chat_model_class(self):
        return ChatClara

    @property
    def chat_model_params(self):
        return {"model": bundled_or_tiny()}


class TestChatModelIntegration(ChatModelIntegrationTests):
    supports_model_override = False
    has_tool_calling = False
    has_structured_output = False

    @property
    def chat_model_class(self):
        return ChatClara

    @property
    def chat_model_params(self):
        return {"model": bundled_or_tiny(), "max_tokens": 24}


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self):
        return ClaraEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": bundled_or_tiny()}


class TestEmbeddingsIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self):
        return ClaraEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": bundled_or_tiny()}


class TestShortEmbeddingsIntegration(TestEmbeddingsIntegration):
    @property
    def embedding_model_params(self):
        return {"model": bundled_or_tiny(), "dimensions": 64}


class TestVectorStoreOfOtherEmbeddings(VectorStoreIntegrationTests):
    """The vector store with the embeddings of the suite, sync and async."""

    @pytest.fixture
    def vectorstore(self):
        return ClaraVectorStore(self.get_embeddings())


class TestVectorStoreOfMemories(VectorStoreIntegrationTests):
    """The same with memories. With the compressor as reasoner, a text finds itself with any weights."""

    @pytest.fixture
    def vectorstore(self):
        return ClaraVectorStore(**served_options("pocket", reasoner="encoder"))


class TestVectorStoreThatLasts(VectorStoreIntegrationTests):
    """The same suite for a store in a folder."""

    @pytest.fixture
    def vectorstore(self, tmp_path):
        pytest.importorskip("lance", reason="the store is not installed: pip install 'clara-rag[store]'")
        return ClaraVectorStore(uri=tmp_path / "memories", **served_options("pocket", reasoner="encoder"))


class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self):
        def construct(**options):
            return ClaraRetriever.from_documents(map(Document, PASSAGES), model=bundled_or_tiny(), **options)

        return construct

    @property
    def retriever_constructor_params(self):
        return {}

    @property
    def retriever_query_example(self):
        return "When was Tolmet Bridge opened?"


class TestRerankingRetriever(TestRetriever):
    @property
    def retriever_constructor(self):
        def construct(**options):
            base = ClaraVectorStore.from_texts(PASSAGES, model=bundled_or_tiny()).as_retriever()
            return ClaraRetriever.from_retriever(base, model=bundled_or_tiny(), **options)

        return construct
