"""Measures the overhead of the LangChain components over their engine calls.

    python -m benchmarks.langchain_overhead            # a Mistral of 60 M parameters on this machine
    python -m benchmarks.langchain_overhead --quick    # a tiny model, where the overhead weighs most

The two sides are measured in turns, and the shortest runs count. Their results are compared; if they differ, the
program ends with an error.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import langchain_core
import torch
import typer
from langchain_core.documents import Document

from benchmarks.report import Row, hardware, show, synchronize
from benchmarks.workload import SHAPES, prepare
from clara_core import ClaraEngine
from langchain_clara import ChatClara, ClaraEmbeddings, ClaraRerank, ClaraVectorStore

MOST = 1.10  # times the engine's own call
MOST_CALLERS = 1.20  # times one batch
DOCUMENTS = 5
CANDIDATES = 20
CALLERS = 50


@dataclass
class Bench:
    """An engine, the components on it, and texts whose memories are in its cache."""

    engine: ClaraEngine
    passages: list[str]
    questions: list[str]
    new_tokens: int
    repeats: int

    def __post_init__(self) -> None:
        self.documents = [Document(text, id=str(number)) for number, text in enumerate(self.passages)]
        self.llm = ChatClara(engine=self.engine, max_tokens=self.new_tokens)
        self.store = ClaraVectorStore.from_documents(self.documents, engine=self.engine)
        self.memories = self.engine.remember(self.passages)

    def one_answer(self) -> Row:
        """`ChatClara.invoke` with documents that are compressed already."""
        few, question = self.documents[:DOCUMENTS], self.questions[0]

        def plain() -> str:
            memories = self.engine.remember(self.passages[:DOCUMENTS])
            return self.engine.answer(question, memories, max_tokens=self.new_tokens).text

        return self.row("ChatClara.invoke", plain, lambda: self.llm.invoke(question, documents=few).content, MOST)

    def reranking(self) -> Row:
        """`ClaraRerank.compress_documents` with candidates that are compressed already."""
        few, question = self.documents[:CANDIDATES], self.questions[1]
        rerank = ClaraRerank(engine=self.engine, top_n=5)

        def plain() -> list[str]:
            memories = self.engine.remember(self.passages[:CANDIDATES])
            return [self.passages[hit.index] for hit in self.engine.rank(question, memories, top_k=5)]

        def component() -> list[str]:
            return [document.page_content for document in rerank.compress_documents(few, question)]

        return self.row("ClaraRerank.compress_documents", plain, component, MOST)

    def search(self) -> Row:
        """A search of the store, compared with ranking all memories, which stacks them first."""
        question = self.questions[2]

        def plain() -> list[str]:
            return [self.passages[hit.index] for hit in self.engine.rank(question, self.memories, top_k=4)]

        def component() -> list[str]:
            return [document.page_content for document in self.store.similarity_search(question, k=4)]

        return self.row(f"ClaraVectorStore, {len(self.passages)} documents", plain, component)

    def one_query(self) -> Row:
        """`embed_query`, whose numbers become Python floats."""
        question = self.questions[3]
        embeddings = ClaraEmbeddings(engine=self.engine)

        def plain() -> list[float]:
            vectors = self.engine.reason([question]).flatten(1).float()
            return [round(number, 4) for number in torch.nn.functional.normalize(vectors, dim=1)[0].tolist()]

        return self.row(
            "ClaraEmbeddings.embed_query", plain, lambda: [round(n, 4) for n in embeddings.embed_query(question)]
        )

    def batch(self) -> Row:
        """`batch`, compared with the engine's own batch."""
        asked = self.questions[:10]
        few = self.documents[:DOCUMENTS]

        def plain() -> list[str]:
            memories = self.engine.remember(self.passages[:DOCUMENTS])
            items = [(question, memories) for question in asked]
            return [answer.text for answer in self.engine.answer_batch(items, max_tokens=self.new_tokens)]

        def component() -> list[str]:
            return [answer.content for answer in self.llm.batch(asked, documents=few)]

        return self.row(f"ChatClara.batch of {len(asked)}", plain, component)

    def callers(self) -> Row:
        """Many concurrent single calls, compared with one `abatch`."""
        few = self.documents[:DOCUMENTS]

        async def together() -> list[Any]:
            return await asyncio.gather(*(self.llm.ainvoke(question, documents=few) for question in self.questions))

        def plain() -> list[str]:
            return [answer.content for answer in asyncio.run(self.llm.abatch(self.questions, documents=few))]

        def component() -> list[str]:
            return [answer.content for answer in asyncio.run(together())]

        return self.row(f"{len(self.questions)} ainvoke beside one abatch", plain, component, MOST_CALLERS)

    def row(self, name: str, plain: Callable[[], Any], component: Callable[[], Any], most: float | None = None) -> Row:
        """Measure both sides in turns."""
        if plain() != component():
            raise SystemExit(f"{name}: the component says something else than the engine")
        best = [float("inf")] * 2
        for _ in range(self.repeats):
            for side, call in enumerate((plain, component)):
                synchronize()
                start = time.perf_counter()
                call()
                synchronize()
                best[side] = min(best[side], time.perf_counter() - start)
        shown = [f"{seconds * 1000:.2f} ms" for seconds in best]
        return Row(name, shown[0], shown[1], best[1] / best[0], most, at_most=True)


def measure(bench: Bench) -> list[Row]:
    """All rows."""
    return [
        bench.one_answer(),
        bench.reranking(),
        bench.search(),
        bench.one_query(),
        bench.batch(),
        bench.callers(),
    ]


def main(
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "60m",
    quick: Annotated[bool, typer.Option("--quick", help="A tiny model and few runs.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Compare components with the engine."""
    shape = "tiny" if quick else shape
    if shape not in SHAPES:
        raise typer.BadParameter(f"unknown shape {shape!r}; known are {', '.join(SHAPES)}")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(SHAPES[shape], Path(folder), device, dtype)
        engine = ClaraEngine.from_pretrained(
            str(work.checkpoint),
            base_model=str(work.base),
            device=device,
            dtype=str(dtype).removeprefix("torch."),
        )
        rows: Sequence[Row] = measure(
            Bench(
                engine,
                work.language.passages(32 if quick else 128),
                work.language.questions(10 if quick else CALLERS),
                new_tokens=4 if quick else 16,
                repeats=2 if quick else 3,
            )
        )
    facts: dict[str, object] = {
        "benchmark": "langchain_overhead",
        "hardware": hardware(device),
        "shape": shape,
        "parameters": SHAPES[shape].parameters,
        "torch": torch.__version__,
        "langchain_core": langchain_core.__version__,
    }
    title = f"LangChain components, random Mistral of {SHAPES[shape].parameters / 1e6:.0f} M, {hardware(device)}"
    show(title, rows, facts, other="component")


if __name__ == "__main__":
    typer.run(main)
