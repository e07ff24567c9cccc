"""Text files become memory tokens; five questions are answered from them, on the CPU.

    make demo                                      the bundled model
    python examples/demo.py apple/CLaRa-7B-E2E     any other CLaRa (or a folder)

The chain is plain LangChain: a retriever finds passages by their memory tokens, and a chat model answers
from the memory tokens of the best. Both share one model without being told. It knows nothing of the files
but what it reads here: their names occur in no text that it was trained on.
"""

from __future__ import annotations

import json
import sys
import time
from operator import itemgetter
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough
from rich.console import Console
from rich.markup import escape

from clara_core import ClaraEngine
from clara_core.data.documents import cut_passages, read_folder
from clara_core.evaluation import exact_match
from langchain_clara import ChatClara, ClaraRetriever, DocumentsPlaceholder

DATA = Path(__file__).parent / "data"
# Five of the eight that the bundled model answers rightly, of the twelve in questions.json: what it is good at, and
# what not, stands in clara_core/pocket/README.md.
QUESTIONS = (
    "When was Mount Masar first climbed?",
    "What does Zorfen Foundry use as its emblem?",
    "In which region does the Lotika deer occur?",
    "What are the main products of Galsena Instruments?",
    "On the banks of which river does Port Melhel lie?",
)
console = Console(highlight=False)


def load_documents(engine: ClaraEngine) -> list[Document]:
    """Read the files, cut at their headings; what is longer than the model's window is cut again."""
    files, _ = read_folder(DATA)
    passages = [part for file in files for part in cut_passages(file, engine.tokenizer.windows)]
    return [Document(p.text, id=f"{p.file}:{p.start}", metadata={"source": p.file, "start": p.start}) for p in passages]


def build_chain(retriever: ClaraRetriever, model: str) -> Runnable[dict[str, Any], dict[str, Any]]:
    """{"question"} -> {"question", "context", "answer"}."""
    prompt = ChatPromptTemplate.from_messages([DocumentsPlaceholder("context"), ("human", "{question}")])
    return RunnablePassthrough.assign(context=itemgetter("question") | retriever).assign(
        answer=prompt | ChatClara(model=model, max_tokens=32)
    )


def show(entry: dict[str, Any], result: dict[str, Any], seconds: float) -> bool:
    """Print one answer with what it was read from; says whether it is the expected one."""
    answer, account = result["answer"].text.strip(), result["answer"].response_metadata
    right = bool(exact_match(answer, entry["answer"]))
    mark = "[green]✓[/]" if right else f"[red]✗[/] expected: {entry['answer']}"
    console.print(f"\n[bold]{entry['question']}[/]")
    console.print(f"  [bold cyan]{escape(answer)}[/] {mark}")
    for document in result["context"]:
        source, score = document.metadata["source"], document.metadata["relevance_score"]
        style = "green" if source in entry["files"] else "dim"
        words = escape(" ".join(document.page_content.split()))
        line = f"  {score:.3f}  [{style}]{source:<26}[/] [dim]{words}[/]"
        console.print(line, no_wrap=True, overflow="ellipsis")
    console.print(
        f"  [dim]{seconds * 1000:.0f} ms, read {account['memory_tokens']} memory tokens "
        f"instead of {account['source_tokens']} of text[/]"
    )
    return right


def main(model: str) -> int:
    """Compress the folder, ask five questions; exit code 1 if an answer is wrong."""
    engine = ClaraEngine.from_pretrained(model)
    start = time.perf_counter()
    engine.load()
    loaded = time.perf_counter()
    documents = load_documents(engine)
    retriever = ClaraRetriever.from_documents(documents, model=model, k=5)
    ready = time.perf_counter()
    text = sum(engine.count_tokens(document.page_content) for document in documents)
    console.print(
        f"[bold]{model}[/]: loaded in {loaded - start:.1f} s; {len(documents)} passages ({text:,} tokens of text) "
        f"compressed in {ready - loaded:.1f} s, {engine.n_mem} memory tokens each",
        soft_wrap=True,
    )
    chain = build_chain(retriever, model)
    known = {
        entry["question"]: entry for entry in json.loads((DATA.parent / "questions.json").read_text(encoding="utf-8"))
    }
    entries = [known[question] for question in QUESTIONS]
    right = saved = 0
    for entry in entries:
        start = time.perf_counter()
        result = chain.invoke({"question": entry["question"]})
        right += show(entry, result, time.perf_counter() - start)
        saved += result["answer"].response_metadata["saved_tokens"]
    console.print(f"\n[bold]{right} of {len(entries)} right[/]; {saved:,} tokens of text need not be read")
    return int(right < len(entries))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "pocket"))
