"""A language model named on the command line.

    openai:MODEL                  a model of OpenAI; the key is in OPENAI_API_KEY
    openai:MODEL@http://…/v1      any server that speaks the same protocol: vLLM, llama.cpp, Ollama, LM Studio, …
    python:package.module:NAME    an object of an installed package
    python:path/to/file.py:NAME   an object of a file of yours

The object is a LangChain chat model, a LlamaIndex LLM, or a function from text to text. Code is run only where the user
names it with ``python:``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import reduce
from importlib import import_module, util
from pathlib import Path
from types import ModuleType
from typing import Any

from clara_core.data.llm import asker

__all__ = ["open_llm"]

_OPENAI = re.compile(r"(?P<model>.+?)(?:@(?P<url>https?://\S+))?")


def open_llm(spec: str) -> Any:
    """The language model that a specification names.

    Raises:
        ValueError: It names none; says which forms there are.
        ImportError: The client for it is not installed.
    """
    kind, _, rest = spec.partition(":")
    if kind == "openai" and (match := _OPENAI.fullmatch(rest)):
        return _openai(match["model"], match["url"])
    module, _, name = rest.rpartition(":")
    if kind == "python" and module and name:
        return _checked(_attribute(_from_file(Path(module)) if module.endswith(".py") else _from_package(module), name))
    raise ValueError(
        "a language model is named openai:MODEL, openai:MODEL@URL, python:MODULE:NAME or python:FILE.py:NAME, "
        f"got {spec!r}"
    )


def _openai(model: str, url: str | None) -> Callable[[str], str]:
    try:
        from openai import OpenAI
    except ImportError as exc:
        raise ImportError("openai: needs its client: pip install 'clara-rag[openai]'") from exc
    key = os.environ.get("OPENAI_API_KEY")
    if key is None and url is None:
        raise ValueError("set OPENAI_API_KEY, or name a server of your own: openai:MODEL@http://localhost:8000/v1")
    # A server of one's own mostly asks for no key, but the client does.
    client = OpenAI(api_key=key or "none", base_url=url)

    def complete(prompt: str) -> str:
        reply = client.chat.completions.create(model=model, messages=[{"role": "user", "content": prompt}])
        return reply.choices[0].message.content or ""

    return complete


def _from_package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not (name == exc.name or name.startswith(f"{exc.name}.")):
            raise  # something that the module itself imports
        raise ValueError(f"there is no module {name!r}; for a file of yours write python:path/to/file.py:NAME") from exc


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    spec = util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{str(path)!r} cannot be loaded as a module")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _checked(llm: Any) -> Any:
    try:
        asker(llm, asynchronous=False)
    except TypeError as exc:
        raise ValueError(str(exc)) from exc
    return llm


def _attribute(module: ModuleType, name: str) -> Any:
    try:
        return reduce(getattr, name.split("."), module)
    except AttributeError as exc:
        raise ValueError(f"{module.__name__!r} has no {name!r}") from exc
