"""Adapters for the documents and language models of frameworks, by duck typing, without importing the frameworks."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeAlias

__all__ = ["Ask", "asker", "text_of"]

Ask: TypeAlias = Callable[[str], Awaitable[str]]


def text_of(document: object) -> str:
    """The unchanged text of a text, a LangChain Document, a LlamaIndex node or a hit of a store.

    Raises:
        TypeError: The document has another type.
    """
    if isinstance(document, str):
        return document
    text = getattr(document, "page_content", None)
    if text is None and callable(read := getattr(document, "get_content", None)):
        text = read()
    if text is None:
        text = getattr(document, "text", None)
    if not isinstance(text, str):
        kind = type(document).__name__
        raise TypeError(f"a document must be a text, a LangChain Document or a LlamaIndex node, got {kind}")
    return text


def asker(llm: Any, *, asynchronous: bool) -> Ask:
    """Wrap a language model as an async function from prompt to reply.

    A LangChain model (anything with ``invoke``) and a LlamaIndex LLM (``complete``) get the prompt as one text, because
    the templates of some models have no system role. Synchronous calls run in threads.

    Args:
        llm: A LangChain chat model or LLM, a LlamaIndex LLM, or a function from text to text, sync or async.
        asynchronous: Use the async method of a LangChain model. Otherwise its sync method is used, since an async
            client that is bound to another event loop would fail.

    Raises:
        TypeError: `llm` has another type.
    """
    if asynchronous and callable(ainvoke := getattr(llm, "ainvoke", None)):
        return _read_from(ainvoke)
    # Not `acomplete` of LlamaIndex: in many classes it is the sync call and would block the event loop.
    for name in ("invoke", "complete"):
        if callable(call := getattr(llm, name, None)):
            return _read_from(_threaded(call))
    if inspect.isclass(llm) or not callable(llm):
        raise TypeError(
            f"llm must be a LangChain chat model, a LlamaIndex LLM or a function from text to text, got {llm!r:.80}"
        )
    is_async = inspect.iscoroutinefunction(llm) or inspect.iscoroutinefunction(type(llm).__call__)
    return _read_from(llm if is_async else _threaded(llm))


def _read_from(call: Callable[[str], Awaitable[Any]]) -> Ask:
    async def ask(prompt: str) -> str:
        reply = await call(prompt)
        # AIMessage and CompletionResponse have `text`; other messages `content`.
        for text in (reply, getattr(reply, "text", None), getattr(reply, "content", None)):
            if isinstance(text, str):
                return str(text)
        raise TypeError(f"the language model must return a text or a message, got {type(reply).__name__}")

    return ask


def _threaded(call: Callable[[str], Any]) -> Callable[[str], Awaitable[Any]]:
    """Run each call in a daemon thread, so that neither cancellation nor interpreter exit waits for it."""

    async def run(prompt: str) -> Any:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # from now on only `work` ends it
        context = contextvars.copy_context()

        def work() -> None:
            try:
                future.set_result(context.run(call, prompt))
            except StopIteration as exc:  # a coroutine cannot raise it
                future.set_exception(RuntimeError(repr(exc)))
            except BaseException as exc:  # noqa: BLE001 - raised in the caller
                future.set_exception(exc)

        threading.Thread(target=work, name="clara-synthesize", daemon=True).start()
        return await asyncio.wrap_future(future)

    return run
