"""The baseline: a language model that reads the documents as text, asked with the generator's own prompt."""

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
    """Somebody's language model as a reader of text.

    Args:
        llm: A LangChain chat model or LLM, a LlamaIndex LLM, or a function from text to text.
        workers: Prompts that it is given at a time, each in a thread of its own.
        name: What it is called; its own name where None.

    Raises:
        TypeError: `llm` is none of them.
    """

    def __init__(self, llm: Any, workers: int, name: str | None = None) -> None:
        self._ask = asker(llm, asynchronous=False)
        self._workers = workers
        self.label = name or _label(llm)

    def read(self, items: Sequence[tuple[RetrievalLine, Sequence[str]]]) -> list[str]:
        """Answers to the questions of lines, each from its own texts.

        Raises:
            ClaraError: The model failed; names the line.
        """
        return _finish(self._read(items))

    async def _read(self, items: Sequence[tuple[RetrievalLine, Sequence[str]]]) -> list[str]:
        free = asyncio.Semaphore(self._workers)

        async def one(line: RetrievalLine, texts: Sequence[str]) -> str:
            async with free:
                try:
                    return await self._ask(text_prompt(line.question, texts))
                except Exception as exc:  # whatever somebody's client raises
                    raise ClaraError(
                        f"{line.where or 'a question'}: the text LLM failed: {type(exc).__name__}: {exc}; where the "
                        "results have a folder, the same call goes on from here"
                    ) from exc

        return await asyncio.gather(*(one(line, texts) for line, texts in items))


def text_prompt(question: str, texts: Sequence[str]) -> str:
    """The generator's prompt with texts in the place of the memory slots."""
    background = "\n\n".join(texts)
    return f"{ANSWER_SYSTEM}\n\nBackground:\n{background}\n\nQuestion: {question}\nAnswer:"


def _finish(work: Coroutine[Any, Any, list[str]]) -> list[str]:
    """Like `asyncio.run`, also where a loop is running already (in a notebook)."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _label(llm: Any) -> str:
    """What the model calls itself, for the report."""
    for name in ("model_name", "model", "model_id", "__name__"):
        value = getattr(llm, name, None)
        if isinstance(value, str) and value:
            return value
    return type(llm).__name__
