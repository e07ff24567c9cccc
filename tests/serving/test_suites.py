"""LangChain's standard suites with a server; with the marker `heavy`, all tests of the components, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lance", reason="the store is not installed: pip install 'clara-rag[store]'")

from langchain_tests.integration_tests import VectorStoreIntegrationTests

from clara_core import MemoryStore
from langchain_clara import ClaraVectorStore
from tests.langchain import test_standard as standard
from tests.langchain.data import tiny_folder
from tests.serving.servers import running

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def random_server():
    """A server of a random model, whose answers are never empty."""
    with running(options={"model": tiny_folder()}) as server:
        yield server


@pytest.fixture(scope="module")
def store_server(tmp_path_factory):
    """A server with a store; the compressor reads questions, so a text finds itself."""
    folder = str(tmp_path_factory.mktemp("stores") / "a")
    with running(options={"model": "pocket", "reasoner": "encoder"}, stores={"a": folder}, writable={"a"}) as server:
        yield server


class TestChatModel(standard.TestChatModelIntegration):
    @pytest.fixture(autouse=True)
    def _address(self, random_server):
        self.url = random_server.url

    @property
    def chat_model_params(self):
        return {"model": self.url, "max_tokens": 24}


class TestEmbeddings(standard.TestEmbeddingsIntegration):
    @pytest.fixture(autouse=True)
    def _address(self, server):
        self.url = server.url

    @property
    def embedding_model_params(self):
        return {"model": self.url}


class TestStoreOfAServer(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, store_server):
        uri = f"{store_server.url}/v1/stores/a"
        MemoryStore.open(uri).delete(filter={})
        return ClaraVectorStore(uri=uri, model=store_server.url)


@pytest.mark.heavy
@pytest.mark.parametrize("suite", ["langchain", "llama_index"])
def test_all_tests_of_the_components_pass_with_an_address_for_a_model(suite):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{suite}"],
        cwd=ROOT,
        env={**os.environ, "CLARA_TESTS_SERVED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
