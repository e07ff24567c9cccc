"""Compares ids, order and scores of one corpus in memory and in a folder, through the core, LangChain and LlamaIndex.

    python -m benchmarks.store_places --documents 10000 --questions 200

The passages and weights are those of `make eval-retrieval`. Memories are stored in float32 in both places unless
``--memory-type`` is given (a folder writes bfloat16 by default). A store in a folder finds candidates by their keys,
and one in memory compares all documents, so a document that the keys miss would show as a difference. The program
prints a line for each mode and filter, and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters, VectorStoreQuery
from tqdm import tqdm

from benchmarks.encyclopedia_tasks import make_world
from clara_core import ClaraEngine, Memory
from clara_core.store import MemoryStore
from langchain_clara import ClaraVectorStore as LangChainStore
from llama_index_clara import ClaraVectorStore as LlamaIndexStore
from tools.pocket_factory.world import ENCYCLOPEDIA

MODES = {"memory": "default", "text": "text_search", "hybrid": "hybrid"}
_BATCH = 256


def main() -> None:
    """Fill the stores, search them, and compare the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--memory-type", default="float32", choices=("float32", "bfloat16", "int8"))
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--drawn", action="store_true", help="Draw random memories instead of compressing.")
    given = parser.parse_args()
    engine = ClaraEngine.from_pretrained(ENCYCLOPEDIA)
    engine.load()
    with tempfile.TemporaryDirectory() as folder:
        cores = {
            place: MemoryStore.open(uri, engine, memory_type=given.memory_type)
            for place, uri in (("memory", "memory://"), ("folder", folder))
        }
        doors: dict[str, Any] = {}
        for place, core in cores.items():
            doors[f"{place}, core"] = core
            doors[f"{place}, LangChain"] = LangChainStore(store=core)
            doors[f"{place}, LlamaIndex"] = LlamaIndexStore(store=core)
        world = make_world(given.documents)
        single, double = world.single[: -(-given.questions * 2 // 3)], world.double[: given.questions // 3]
        fill(doors, engine, world.texts, drawn=given.drawn)
        sys.exit(0 if compare(doors, engine, [question.text for question in (*single, *double)], given) else 1)


def fill(doors: dict[str, Any], engine: ClaraEngine, texts: Sequence[str], *, drawn: bool) -> None:
    """Add the same nodes to both places through LlamaIndex, whose documents the other adapters can read."""
    for start in tqdm(range(0, len(texts), _BATCH), desc="compressing", unit="batch"):
        batch = texts[start : start + _BATCH]
        nodes = [
            TextNode(id_=f"n-{number}", text=text, metadata={"group": number % 10},
                     excluded_embed_metadata_keys=["group"])
            for number, text in enumerate(batch, start)
        ]  # fmt: skip
        memories = draw(engine, batch, start) if drawn else engine.compress(batch)
        for place in ("memory", "folder"):
            doors[f"{place}, LlamaIndex"].add(nodes, memories=memories)


def draw(engine: ClaraEngine, texts: Sequence[str], seed: int) -> list[Memory]:
    """Random memories that are as similar to each other as those of the model; every fourth has two windows."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(engine.n_mem, engine.hidden, generator=torch.Generator().manual_seed(0))
    found = []
    for number, text in enumerate(texts):
        windows = 2 if number % 4 == 0 else 1
        tokens = common + torch.randn(windows, engine.n_mem, engine.hidden, generator=generator)
        found.append(Memory(tokens, text, ((0, len(text)),) * windows, 1, engine.fingerprint))
    return found


def ask(
    door: Any, question: str, vector: torch.Tensor, k: int, mode: str, group: int | None
) -> list[tuple[str, float]]:
    """Ids and scores of a search."""
    condition = None if group is None else {"group": group}
    if isinstance(door, MemoryStore):
        hits = door.search(vector, k, filter=condition) if mode == "memory" else door.search(
            question, k, filter=condition, mode=mode, vectors=None if mode == "text" else vector)  # type: ignore[call-overload]  # fmt: skip
        return [(hit.id, hit.score) for hit in hits]
    if isinstance(door, LangChainStore):
        found = door.similarity_search_with_score(question, k, filter=condition, mode=mode)
        return [(str(document.id), score) for document, score in found]
    filters = None if group is None else MetadataFilters(filters=[MetadataFilter(key="group", value=group)])
    query = VectorStoreQuery(
        query_embedding=None if mode == "text" else vector.tolist(), query_str=None if mode == "memory" else question,
        similarity_top_k=k, mode=MODES[mode], filters=filters,
    )  # type: ignore[arg-type]  # fmt: skip
    result = door.query(query)
    return list(zip(result.ids or [], result.similarities or [], strict=True))


def compare(doors: dict[str, Any], engine: ClaraEngine, questions: Sequence[str], given: argparse.Namespace) -> bool:
    """Whether all results equal the first one."""
    vectors = engine.reason(questions).flatten(1)
    report = []
    for mode in MODES:
        for filtered in (False, True):
            wrong, worst = dict.fromkeys(doors, 0), 0.0
            for number, (question, vector) in enumerate(zip(questions, vectors, strict=True)):
                group = number % 10 if filtered else None
                answers = {name: ask(door, question, vector, given.k, mode, group) for name, door in doors.items()}
                first = next(iter(answers.values()))
                for name, answer in answers.items():
                    wrong[name] += [id_ for id_, _ in answer] != [id_ for id_, _ in first]
                    pairs = zip(sorted(dict(answer).items()), sorted(dict(first).items()), strict=False)
                    worst = max([worst, *(abs(a - b) for (i, a), (j, b) in pairs if i == j)])
            report.append({"mode": mode, "filter": filtered, "other_order": sum(wrong.values()), "score": worst})
            print(f"{mode:8} filter={filtered!s:5} other order: {wrong}  largest difference of scores: {worst:.2e}")
    print(json.dumps({"documents": given.documents, "questions": given.questions, "type": given.memory_type,
                      "result": report}))  # fmt: skip
    return all(not row["other_order"] and row["score"] < 1.001e-6 for row in report)


if __name__ == "__main__":
    main()
