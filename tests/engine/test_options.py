"""Every entry point takes all options of `EngineOptions`, and refuses unknown ones by name."""

from __future__ import annotations

import inspect
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
from llama_index.core import Document as LlamaDocument

from clara_core import ClaraEngine, MemoryStore, UnknownOption
from clara_core.cli.main import app
from clara_core.common import announce
from clara_core.engine.options import EngineArguments, EngineOptions
from clara_core.training.config import TrainingConfig, parse
from langchain_clara import ChatClara, ClaraEmbeddings, ClaraRerank, ClaraTextSplitter
from langchain_clara import ClaraRetriever as LangChainRetriever
from langchain_clara import ClaraVectorStore as LangChainStore
from llama_index_clara import (
    ClaraEmbedding,
    ClaraLLM,
    ClaraNodeParser,
    ClaraQueryEngine,
    ClaraRetriever,
    ClaraSynthesizer,
    ClaraVectorStore,
)
from llama_index_clara import ClaraRerank as LlamaRerank
from tests.engines import open_engine
from tests.tiny import Tiny, build

FIELDS = EngineOptions.model_fields
# For each option a value other than the default that an engine of the tiny checkpoint accepts.
VALUES: dict[str, Any] = {
    "compression": 8,
    "revision": "main",
    "token": "hf_secret",
    "cache_dir": "downloads",
    "local_files_only": True,
    "device": "cpu",
    "dtype": "float32",
    "quantization": "nf4",
    "attn_implementation": "eager",
    "cpu_kernels": "mkl",
    "cuda_graphs": "auto",
    "reasoner": "encoder",
    "kv_cache_bytes": 2**20,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(tiny: Tiny) -> ClaraEngine:
    return open_engine(tiny)


RATE = 8  # of the tiny checkpoint
DOCUMENTS = [LlamaDocument(text="Tolmet Bridge was opened in 1907.")]


def open_store(**options: Any) -> MemoryStore:
    return MemoryStore.open("memory://", **options)


def query_engine(**options: Any) -> ClaraQueryEngine:
    return ClaraQueryEngine.from_documents(DOCUMENTS, **options)


def read_config(**options: Any) -> TrainingConfig:
    return parse(TrainingConfig, {"stage": "stage1", "data": "a.jsonl", "out": "run", **options}, "stage1.toml")


# The entry point, its name in errors, and how to get its engine.
DOORS: list[tuple[Callable[..., Any], str, Callable[[Any], ClaraEngine] | None]] = [
    (ClaraEngine.from_pretrained, "ClaraEngine.from_pretrained", lambda made: made),
    (open_store, "MemoryStore.open", lambda made: made.engine),
    (ChatClara, "ChatClara", lambda made: made.shared_engine),
    (ClaraEmbeddings, "ClaraEmbeddings", lambda made: made.shared_engine),
    (ClaraRerank, "ClaraRerank", lambda made: made.shared_engine),
    (ClaraTextSplitter, "ClaraTextSplitter", lambda made: made._source.shared_engine),
    (LangChainRetriever, "ClaraRetriever", lambda made: made.shared_engine),
    (partial(LangChainRetriever.from_documents, []), "ClaraRetriever", lambda made: made.shared_engine),
    (LangChainStore, "ClaraVectorStore", lambda made: made.embeddings.shared_engine),
    (partial(LangChainStore.from_texts, []), "ClaraVectorStore", lambda made: made.embeddings.shared_engine),
    (ClaraLLM, "ClaraLLM", lambda made: made.engine),
    (ClaraEmbedding, "ClaraEmbedding", lambda made: made.engine),
    (LlamaRerank, "ClaraRerank", lambda made: made.engine),
    (ClaraNodeParser, "ClaraNodeParser", lambda made: made.engine),
    (ClaraVectorStore, "ClaraVectorStore", lambda made: made.engine),
    (ClaraRetriever, "ClaraRetriever", lambda made: made.engine),
    (partial(ClaraRetriever.from_documents, []), "ClaraRetriever", lambda made: made.engine),
    (ClaraSynthesizer, "ClaraSynthesizer", lambda made: made.llm.engine),
    (query_engine, "ClaraQueryEngine.from_documents", lambda made: made.retriever.engine),
    (query_engine, "ClaraQueryEngine.from_documents", lambda made: made._response_synthesizer.llm.engine),
    (partial(ClaraQueryEngine, ClaraRetriever(model="pocket")), "ClaraQueryEngine",
     lambda made: made._response_synthesizer.llm.engine),
    (read_config, "stage1.toml", None),
]  # fmt: skip
IDS = [f"{name} ({index})" for index, (_, name, _) in enumerate(DOORS)]
MODELLESS = {"train", "store"}  # these read their options from a file, or maintain files without a model
COMMANDS = [name for name in typer.main.get_command(app).commands if name not in MODELLESS]  # type: ignore[attr-defined]


def test_from_pretrained_spells_out_the_fields() -> None:
    spelled = {
        name: (one.annotation, one.default)
        for name, one in inspect.signature(ClaraEngine.from_pretrained, eval_str=True).parameters.items()
        if one.kind is not inspect.Parameter.VAR_KEYWORD
    }
    assert spelled == {name: (field.annotation, field.default) for name, field in FIELDS.items()}
    written = ClaraEngine.from_pretrained.__doc__ or ""
    assert [name for name in FIELDS if f"            {name}: " not in written] == []


@pytest.mark.parametrize("call, name, engine_of", DOORS, ids=IDS)
def test_every_door_takes_every_option(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call, name, engine_of
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"model": str(tiny.folder), "base_model": str(tiny.base), **VALUES}
    assert options.keys() == FIELDS.keys(), "an option was added: give it a value here"
    if engine_of is None:
        options["reasoner"] = "auto"  # a run creates its own query reasoner
        assert {option: getattr(call(**options), option) for option in options} == options
        return
    if call is query_engine:  # compresses immediately, so it needs options that work
        options["quantization"], options["compression"] = None, RATE
    found = engine_of(call(**options)).arguments
    expected = EngineArguments(**options).resolved()
    assert found == expected
    assert found.token == "hf_secret"


@pytest.mark.parametrize("call, name, engine_of", DOORS, ids=IDS)
@pytest.mark.parametrize("wrong, meant", [("compresion", "compression"), ("local_file_only", "local_files_only")])
def test_every_door_refuses_an_option_by_its_own_name(call, name, engine_of, wrong, meant) -> None:
    with pytest.raises(UnknownOption) as caught:
        call(**{"model": "pocket", wrong: 16})
    assert name in str(caught.value)
    assert f"{wrong!r}; did you mean {meant!r}?" in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ClaraRetriever(ClaraVectorStore(model="pocket"), similarity_topk=3),
        lambda: ClaraSynthesizer(ClaraLLM(model="pocket"), steaming=True),
        lambda: ClaraQueryEngine(ClaraRetriever(model="pocket"), ClaraSynthesizer(model="pocket"), steaming=True),
        lambda: LangChainStore(ClaraEmbeddings(model="pocket"), show_progres=True),
        lambda: ClaraEngine.from_pretrained("pocket").answer("Who?", max_token=3),
        lambda: ClaraLLM(model="pocket").complete("Who?", max_token=3),
        lambda: ChatClara(model="pocket").invoke("Who?", max_token=3),
    ],
)
def test_a_wrong_option_is_not_taken_for_one_of_an_engine(call) -> None:
    with pytest.raises(UnknownOption, match="did you mean"):
        call()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_every_option(command) -> None:
    taken = {one.name: one for one in typer.main.get_command(app).commands[command].params}  # type: ignore[attr-defined]
    fields = EngineOptions.model_fields if command != "convert" else EngineOptions.__base__.model_fields
    assert fields.keys() <= taken.keys()
    for name in fields.keys() - {"model"}:
        assert (taken[name].default, taken[name].opts) == (fields[name].default, [f"--{name.replace('_', '-')}"])


@pytest.mark.parametrize(
    "call, name, engine_of", [door for door in DOORS if door[2] is not None and door[1] != "MemoryStore.open"]
)
def test_an_engine_and_a_model_exclude_each_other(engine: ClaraEngine, call, name, engine_of) -> None:
    if call == ClaraEngine.from_pretrained:
        return
    with pytest.raises(ValueError, match="engine= or model=, not both"):
        call(engine=engine, model="pocket")
    if call is not query_engine:
        assert engine_of(call(engine=engine, device="auto")) is engine  # a default gives the same engine


def test_a_token_is_not_written_anywhere() -> None:
    for component in (ChatClara(model="pocket", token="hf_secret"), ClaraLLM(model="pocket", token="hf_secret")):
        shown = repr(component) + component.model_dump_json(exclude={"cache", "callback_manager"})
        assert "hf_secret" not in shown + repr(pickle.dumps(component))
        assert component.model_copy().token == "hf_secret"
    assert "hf_secret" not in repr(pickle.dumps(EngineArguments(token="hf_secret")))


# --- default model and default rate ----------------------------------------------------------------------


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    announce.announce_again()
    monkeypatch.setattr(announce.log, "propagate", True)  # the command line removes its lines from the log
    caplog.set_level(logging.INFO, logger="clara_core.common.announce")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "clara_core.common.announce"]


@pytest.mark.parametrize("call", [ClaraEngine.from_pretrained, ClaraLLM, lambda: ChatClara().shared_engine])
def test_a_model_that_nobody_named_is_said_once(said, call) -> None:
    call()
    call()
    (line,) = said()
    assert "'pocket' answers" in line
    ClaraEngine.from_pretrained("pocket")
    assert len(said()) == 1


def test_a_named_model_says_nothing(said, engine: ClaraEngine) -> None:
    ClaraLLM(model="pocket")
    ClaraLLM(engine=engine)
    assert ChatClara(model="pocket").shared_engine
    assert said() == []


def test_released_models_have_a_default_rate(said) -> None:
    found = ClaraEngine.from_pretrained("apple/CLaRa-7B-E2E", device="cpu")
    assert found.arguments.compression == 16
    assert "has the rates 16, 128: using 16" in said()[0]
    assert ClaraEngine.from_pretrained("apple/CLaRa-7B-E2E", compression=16, device="cpu") is found
    assert ClaraEngine.from_pretrained("apple/CLaRa-7B-E2E", compression=128, device="cpu") is not found
    assert len(said()) == 1


def test_a_folder_of_several_rates_has_a_default(said, tiny: Tiny, tmp_path: Path) -> None:
    for rate in (RATE * 2, RATE):
        (tmp_path / f"compression-{rate}").symlink_to(tiny.folder)
    found = ClaraEngine.from_pretrained(str(tmp_path), base_model=str(tiny.base), device="cpu", dtype="float32")
    assert found.arguments.compression == RATE
    assert f"using {RATE}" in said()[0]
    assert found.compress(["Tolmet Bridge was opened in 1907."])


def test_the_rate_that_a_checkpoint_has_names_the_same_engine(tiny: Tiny) -> None:
    one = ClaraEngine.from_pretrained(str(tiny.folder), base_model=str(tiny.base))
    assert ClaraEngine.from_pretrained(str(tiny.folder), base_model=str(tiny.base), compression=RATE) is one


def test_nothing_is_written_where_nobody_watches(tmp_path: Path) -> None:
    """A service has neither a terminal nor our log handler: its standard error stays empty."""
    program = "from clara_core import ClaraEngine; ClaraEngine.from_pretrained()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
