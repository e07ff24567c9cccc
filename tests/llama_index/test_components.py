"""Every component: its class, its engine, copies and pickles."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from llama_index.core import Document
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import CustomLLM
from llama_index.core.node_parser import NodeParser
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.vector_stores.types import BasePydanticVectorStore

import llama_index_clara
from clara_core import CheckpointError, ClaraEngine
from llama_index_clara import (
    ClaraEmbedding,
    ClaraLLM,
    ClaraNodeParser,
    ClaraQueryEngine,
    ClaraRerank,
    ClaraRetriever,
    ClaraSynthesizer,
    ClaraVectorStore,
)
from tests.llama_index.doubles import QUESTION, TEXTS, nodes

ROOT = Path(__file__).parents[2]
BASES = {
    ClaraEmbedding: BaseEmbedding,
    ClaraVectorStore: BasePydanticVectorStore,
    ClaraRetriever: BaseRetriever,
    ClaraRerank: BaseNodePostprocessor,
    ClaraLLM: CustomLLM,
    ClaraSynthesizer: BaseSynthesizer,
    ClaraQueryEngine: RetrieverQueryEngine,
    ClaraNodeParser: NodeParser,
}
FIELDED = (ClaraEmbedding, ClaraVectorStore, ClaraRerank, ClaraLLM, ClaraNodeParser)
SENT = (ClaraEmbedding, ClaraRerank, ClaraLLM, ClaraNodeParser)  # all except the store, which belongs to its process
ENGINED = (*FIELDED, ClaraRetriever)


@pytest.mark.parametrize("component, base", BASES.items())
def test_component_is_what_it_replaces(component, base):
    assert issubclass(component, base)


def test_class_names_are_our_own():
    assert [component.class_name() for component in FIELDED] == [component.__name__ for component in FIELDED]


@pytest.mark.parametrize("component", ENGINED)
def test_components_of_one_model_share_one_engine(model, engine, component):
    assert component(model=model).engine is engine
    assert component(engine=engine).engine is engine


def test_parts_made_on_the_way_share_it_too(model, engine):
    assert ClaraSynthesizer(model=model).llm.engine is engine
    query_engine = ClaraQueryEngine(ClaraRetriever(model=model))
    assert query_engine._response_synthesizer.llm.engine is engine
    assert query_engine._response_synthesizer.llm.reading(["a"]).engine is engine


@pytest.mark.parametrize("component", ENGINED)
def test_the_bundled_model_is_the_default(component):
    assert component().engine is ClaraEngine.from_pretrained("pocket")


@pytest.mark.in_process
@pytest.mark.parametrize("option", ["base_model", "dtype", "reasoner", "attn_implementation", "local_files_only"])
def test_options_reach_the_engine(tiny, model, engine, option):
    value = {
        "base_model": str(tiny.base),
        "dtype": "bfloat16",
        "reasoner": "encoder",
        "attn_implementation": "eager",
        "local_files_only": True,
    }[option]
    found = ClaraRerank(model=model, **{option: value}).engine
    assert found is not engine
    assert found is ClaraEngine.from_pretrained(model, **{option: value})


@pytest.mark.parametrize("component", FIELDED)
def test_engine_and_model_at_once(engine, component):
    with pytest.raises(ValueError, match="engine= or model="):
        component(engine=engine, model="pocket")
    with pytest.raises(ValueError, match="engine= or compression="):
        component(engine=engine, compression=16)
    with pytest.raises(TypeError, match="a ClaraEngine or RemoteEngine, got str"):
        component(engine="pocket")


@pytest.mark.parametrize("component", FIELDED)
def test_misspelt_option_names_the_right_one(component):
    with pytest.raises(TypeError, match="did you mean 'compression'"):
        component(compresion=16)


def test_model_name_means_model(model, engine):
    assert ClaraEmbedding(model_name=model).engine is engine
    assert ClaraEmbedding(model=model).model_name == model
    with pytest.raises(ValueError, match="mean the same"):
        ClaraEmbedding(model=model, model_name="pocket")


@pytest.mark.parametrize("component", FIELDED)
def test_serialized_component_has_fields_and_no_engine(model, engine, component):
    made = component(engine=engine)
    made.engine.load()
    fields = json.loads(made.to_json())
    assert fields["class_name"] == component.__name__
    assert fields["model"] == model
    assert not {"engine", "_engine", "token"} & set(fields)
    assert len(json.dumps(fields)) < 2000
    fields.pop("id_func", None)  # LlamaIndex writes this one in a form that it cannot read
    assert component.from_dict(fields).engine is engine


@pytest.mark.parametrize("component", FIELDED)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda made: made.model_copy(deep=True)])
def test_copies_share_the_engine(model, engine, component, copied):
    made = component(model=model)
    twin = copied(made)
    assert twin is not made
    assert twin.engine is made.engine is engine


def test_a_copy_of_a_store_is_its_own(model):
    store = ClaraVectorStore(model=model)
    store.add(nodes(1))
    for twin in (copy.deepcopy(store), pickle.loads(pickle.dumps(store))):  # noqa: S301
        store.add(nodes(2))
        assert (twin.count, twin.engine) == (1, store.engine)
        twin.clear()
    assert store.count == 2


@pytest.mark.parametrize("component", SENT)
def test_pickle_finds_the_engine_again(model, engine, component):
    made = component(model=model, callback_manager=CallbackManager([]))
    made.engine.load()
    before = dict(made.__dict__)
    data = pickle.dumps(made)
    assert len(data) < 4000
    assert made.__dict__ == before
    assert made.engine is engine
    assert pickle.loads(data).engine is engine  # noqa: S301


def test_pickle_with_a_handler_that_cannot_be_pickled_leaves_the_component_alone(model):
    class Handler:
        def __reduce__(self):
            raise TypeError("no")

    llm = ClaraLLM(model=model, max_tokens=7)
    llm.callback_manager.handlers.append(Handler())
    kept = llm.callback_manager
    twin = pickle.loads(pickle.dumps(llm))  # noqa: S301
    assert llm.callback_manager is kept
    assert twin.max_tokens == 7


def test_pickled_reader_keeps_its_documents(model, engine):
    reader = ClaraLLM(model=model, max_tokens=4).reading(nodes(2))
    twin = pickle.loads(pickle.dumps(reader))  # noqa: S301
    assert twin.complete(QUESTION).raw["usage"]["memory_tokens"] == 2 * engine.n_mem


def test_missing_model_says_so_every_time():
    for _ in range(2):
        with pytest.raises(CheckpointError, match="/nowhere/at/all"):
            ClaraLLM(model="/nowhere/at/all").complete("Hello")


def test_making_components_loads_no_torch():
    code = (
        "import sys\n"
        "from llama_index_clara import *\n"
        "ClaraEmbedding(), ClaraVectorStore(), ClaraRerank(), ClaraLLM(), ClaraNodeParser()\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    "make, owner, option, near",
    [
        (lambda retriever, s: ClaraSynthesizer(max_token=3), "ClaraSynthesizer", "max_token", "max_tokens"),
        (lambda retriever, s: ClaraQueryEngine(retriever, max_token=3), "ClaraQueryEngine", "max_token", "max_tokens"),
        (
            lambda retriever, s: ClaraQueryEngine(retriever, s, streeming=1),
            "ClaraQueryEngine",
            "streeming",
            "streaming",
        ),
        (lambda retriever, s: ClaraQueryEngine.from_args(retriever, modle="x"), "ClaraQueryEngine", "modle", "model"),
        (lambda retriever, s: ClaraRetriever(filter=1), "ClaraRetriever", "filter", "filters"),
        (lambda retriever, s: ClaraRetriever(retriever.vector_store, filter=1), "ClaraRetriever", "filter", "filters"),
        (
            lambda retriever, s: ClaraRetriever.from_documents([], dimension=3),
            "ClaraRetriever",
            "dimension",
            "dimensions",
        ),
    ],
)
def test_a_wrong_option_names_the_class_that_was_called(model, make, owner, option, near):
    """The message does not name an inner part, and the option does not count as one that excludes another."""
    retriever = ClaraRetriever(model=model)
    with pytest.raises(TypeError, match=f"^{owner} has no option '{option}'; did you mean '{near}'"):
        make(retriever, ClaraSynthesizer(model=model))


def test_a_right_option_in_the_wrong_place_is_told_apart(model):
    retriever, synthesizer = ClaraRetriever(model=model), ClaraSynthesizer(model=model)
    with pytest.raises(ValueError, match="response_synthesizer= or max_tokens=, not both"):
        ClaraQueryEngine(retriever, synthesizer, max_tokens=3)
    with pytest.raises(ValueError, match="vector_store= or model=, not both"):
        ClaraRetriever(retriever.vector_store, model=model)
    with pytest.raises(ValueError, match="engine= or model=, not both"):
        ClaraEmbedding(engine=retriever.engine, model_name="another")
    for wrong in (model, synthesizer):
        with pytest.raises(TypeError, match="must be a ClaraVectorStore"):
            ClaraRetriever(wrong)
    for wrong in (model, retriever.vector_store):
        with pytest.raises(TypeError, match="must be a retriever, such as ClaraRetriever"):
            ClaraQueryEngine(wrong)


def test_version_and_the_list_of_llamahub():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert llama_index_clara.__version__ == project["project"]["version"]
    hub = project["tool"]["llamahub"]
    assert hub["import_path"] == "llama_index_clara"
    assert hub["class_authors"].keys() == {name for name in llama_index_clara.__all__ if name.startswith("Clara")}


def test_questions_of_a_retriever_are_counted_where_its_callbacks_are(model):
    counter = TokenCountingHandler(tokenizer=str.split)
    retriever = ClaraRetriever(model=model, callback_manager=CallbackManager([counter]))
    retriever.add_nodes(nodes())
    retriever.retrieve(QUESTION)
    assert counter.total_embedding_token_count == len(QUESTION.split())


def test_other_things_than_documents_and_nodes_are_said_in_words(model):
    """Above all strings, which the engine itself accepts."""
    document, synthesizer = Document(text=TEXTS[0]), ClaraSynthesizer(model=model)
    store = ClaraVectorStore(model=model)
    for take, what in (
        (lambda given: ClaraRetriever.from_documents(given, model=model), "documents"),
        (lambda given: ClaraQueryEngine.from_documents(given, model=model), "documents"),
        (store.add, "nodes"),
        (ClaraRetriever(store).add_nodes, "nodes"),
    ):
        with pytest.raises(
            TypeError, match=rf"{what}\[1\] must be a Document or node, got str; .*Document\(text=...\)"
        ):
            take([document, TEXTS[1]])
        for one in (document, TEXTS[0]):
            with pytest.raises(
                TypeError, match=f"{what} must be several, got one {type(one).__name__}; put it into a list"
            ):
                take(one)
    for wrong in (TEXTS[0], document):
        with pytest.raises(TypeError, match=rf"nodes\[0\] must be a NodeWithScore, got {type(wrong).__name__}"):
            synthesizer.synthesize(QUESTION, [wrong])
    with pytest.raises(TypeError, match=r"must be MetadataFilters, got dict; such as MetadataFilters\(filters="):
        ClaraRetriever(store, filters={"year": 1931})
    assert store.count == 0
