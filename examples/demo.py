"""A handbook of text files becomes memory tokens; eight questions are answered from them, on the CPU.

    make demo                                      the bundled model
    python examples/demo.py apple/CLaRa-7B-E2E     any other CLaRa (or a folder)

The chain is plain LangChain: a retriever finds passages by their memory tokens and their words, and a chat model
answers from the memory tokens of as many of them as it reads well. Both share one model without being told. No document
answers the last question: the model says so, or that it is not sure.
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
from clara_core.engine.quoting.verbatim import REFUSAL
from clara_core.evaluation import exact_match
from langchain_clara import ChatClara, ClaraRetriever, DocumentsPlaceholder

DATA = Path(__file__).parent / "data"
QUESTIONS = (
    "Who pays the bills of the house?",
    "In which year was the Boathouse built?",
    "What is the price of a return ticket?",
    "How long does the ferry to Heron Island take?",
    "Where was Marie Curie born?",
    "Why was the summer party moved?",
    "height of the eiffel tower",
    "Who is the captain of the ferry?",
)
ENOUGH = 5  # right answers of the seven that the files hold, on any processor; they are easy ones: see the card
SURE = 0.5  # confidence below which an answer is shown as not sure
console = Console(highlight=False)


def load_documents(engine: ClaraEngine) -> list[Document]:
    """Read the files, cut at their headings; what is longer than the model's window is cut again."""
    files, _ = read_folder(DATA)
    passages = [part for file in files for part in cut_passages(file, engine.tokenizer.windows)]
    return [Document(p.text, id=f"{p.file}:{p.start}", metadata={"source": p.file, "start": p.start}) for p in passages]


def build_chain(retriever: ClaraRetriever, model: str, few: int) -> Runnable[dict[str, Any], dict[str, Any]]:
    """{"question"} -> {"question", "context", "answer"}; the first `few` documents of the context are read."""
    prompt = ChatPromptTemplate.from_messages([DocumentsPlaceholder("context"), ("human", "{question}")])
    return RunnablePassthrough.assign(context=itemgetter("question") | retriever).assign(
        answer=RunnablePassthrough.assign(context=lambda found: found["context"][:few])
        | prompt
        | ChatClara(model=model, max_tokens=32, min_confidence=0)  # withholds nothing, but says how sure it is
    )


def show(entry: dict[str, Any], result: dict[str, Any], seconds: float) -> bool:
    """Print one answer, how sure it is, and what it was read from; says whether it is one of those expected."""
    answer, account = result["answer"].text.strip(), result["answer"].response_metadata
    right = bool(entry["answers"]) and bool(exact_match(answer, entry["answers"]))
    refused = not entry["answers"] and answer == REFUSAL
    wrong = f"[red]✗[/] expected: {entry['answers'][0]}" if entry["answers"] else "[dim]?[/]"
    mark = "[green]✓[/]" if right or refused else wrong
    console.print(f"\n[bold]{entry['question']}[/]")
    console.print(f"  [bold cyan]{escape(answer)}[/] {mark}{confidence(account)}")
    if not entry["answers"]:
        console.print("  [dim]No document answers this.[/]")
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


def confidence(account: dict[str, Any]) -> str:
    """How likely the answer is right, for a model that has been calibrated."""
    sure = account["confidence"]
    if sure is None or not account["calibrated"]:
        return ""
    return f"  {sure:.0%} sure" if sure >= SURE else f"  [yellow]not sure ({sure:.0%})[/]"


def main(model: str) -> int:
    """Compress the folder, ask the questions; exit code 1 if fewer than `ENOUGH` answers are right."""
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
    chain = build_chain(retriever, model, engine.answer_top_k)
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
    answerable = sum(bool(entry["answers"]) for entry in entries)
    console.print(f"\n[bold]{right} of {answerable} right[/]; {saved:,} tokens of text need not be read")
    console.print('Ask about files of your own:  [bold]clara ask YOUR_FOLDER "…"[/]')
    return int(right < ENOUGH)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "pocket"))
