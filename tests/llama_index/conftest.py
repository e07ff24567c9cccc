"""Fixtures of the LlamaIndex tests. No OpenAI package, no IS_TESTING: what asks for a default model fails."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("llama_index.core", reason="LlamaIndex is not installed: pip install 'clara-rag[llama-index]'")

from llama_index.core import Settings

from clara_core import ClaraEngine
from clara_core.checkpoint.hub import BUNDLED
from tests.llama_index.doubles import Recorder
from tests.served import served
from tests.tiny import build


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return build(tmp_path_factory.mktemp("llama_index"))


@pytest.fixture(scope="session")
def model(tiny):
    """Folder of a random checkpoint: everything works, nothing makes sense."""
    return served(tiny.folder)


@pytest.fixture(scope="session")
def engine(model):
    return ClaraEngine.from_pretrained(model)


@pytest.fixture(scope="session")
def best_model(model):
    """The bundled model where its weights are there, else the random one."""
    return served("pocket") if (BUNDLED["pocket"] / "config.json").is_file() else model


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch):
    """What a user without OpenAI has."""
    monkeypatch.delenv("IS_TESTING", raising=False)
    for name in ("openai", "llama_index.llms.openai", "llama_index.embeddings.openai"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails, installed or not
    for name in ("_llm", "_embed_model", "_callback_manager", "_tokenizer", "_node_parser", "_prompt_helper"):
        monkeypatch.setattr(Settings, name, None)
    monkeypatch.setattr(Settings, "_transformations", None)


@pytest.fixture
def recorder():
    """Names of LlamaIndex's events while it is on."""
    with Recorder() as recorder:
        yield recorder
