"""The text baseline: a language model that reads the documents as text, with the prompt of the generator."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from clara_core.common.errors import ClaraError
from clara_core.data.examples import RetrievalLine
from clara_core.data.llm import asker
from clara_core.model.tokenizer import ANSWER_SYSTEM


class TextReader:
    """Answers questions from text with a language model.

    Args:
        llm: A LangChain chat model or LLM, a LlamaIndex LLM, or a function from text to text.
        workers: Most concurrent calls, each in a thread.
        name: Name of the model in the report; None for its own name.

    Raises:
        TypeError: `llm` has another type.
    """

    def __init__(self, llm: Any, workers: int, name: str | None = None) -> None:
        self._ask = asker(llm, asynchronous=False)
        self._workers = workers
        self.label = name or _label(llm)

    def read(self, items: Sequence[tuple[RetrievalLine, Sequence[str]]]) -> list[str]:
        """Answer the question of each line from its texts.

        Raises:
            ClaraError: The model failed; the message names the line.
        """
        return _finish(self._read(items))

    async def _read(self, items: Sequence[tuple[RetrievalLine, Sequence[str]]]) -> list[str]:
        free = asyncio.Semaphore(self._workers)

        async def one(line: RetrievalLine, texts: Sequence[str]) -> str:
            async with free:
                try:
                    return await self._ask(text_prompt(line.question, texts))
                except Exception as exc:  # a client may raise anything
                    raise ClaraError(
                        f"{line.where or 'a question'}: the text LLM failed: {type(exc).__name__}: {exc}; if the "
                        "results have a folder, the same call resumes here"
                    ) from exc

        return await asyncio.gather(*(one(line, texts) for line, texts in items))


def text_prompt(question: str, texts: Sequence[str]) -> str:
    """The prompt of the generator with texts instead of memory slots."""
    background = "\n\n".join(texts)
    return f"{ANSWER_SYSTEM}\n\nBackground:\n{background}\n\nQuestion: {question}\nAnswer:"


def _finish(work: Coroutine[Any, Any, list[str]]) -> list[str]:
    """Like `asyncio.run`, but also works if an event loop is running (in a notebook)."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _label(llm: Any) -> str:
    """Name of a model, for the report."""
    for name in ("model_name", "model", "model_id", "__name__"):
        value = getattr(llm, name, None)
        if isinstance(value, str) and value:
            return value
    return type(llm).__name__
