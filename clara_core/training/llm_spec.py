"""Opens the language model that an option of the command line names.

    openai:MODEL                  a model of OpenAI; the key is in OPENAI_API_KEY
    openai:MODEL@http://…/v1      any server with OpenAI's API: vLLM, llama.cpp, Ollama, LM Studio, …
    python:package.module:NAME    an object in an installed package
    python:path/to/file.py:NAME   an object in a Python file

The object is a LangChain chat model, a LlamaIndex LLM, or a function from text to text. Only ``python:`` runs code.
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
    """Open the language model of a specification.

    Raises:
        ValueError: The specification has an unknown form, or names something that does not exist.
        ImportError: The client of the model is not installed.
    """
    kind, _, rest = spec.partition(":")
    if kind == "openai" and (match := _OPENAI.fullmatch(rest)):
        return _openai(match["model"], match["url"])
    module, _, name = rest.rpartition(":")
    if kind == "python" and module and name:
        return _checked(_attribute(_from_file(Path(module)) if module.endswith(".py") else _from_package(module), name))
    raise ValueError(
        "a language model must be openai:MODEL, openai:MODEL@URL, python:MODULE:NAME or python:FILE.py:NAME, "
        f"got {spec!r}"
    )


def _openai(model: str, url: str | None) -> Callable[[str], str]:
    try:
        from openai import OpenAI
    except ImportError as exc:
        raise ImportError("openai: needs OpenAI's client: pip install 'clara-rag[openai]'") from exc
    key = os.environ.get("OPENAI_API_KEY")
    if key is None and url is None:
        raise ValueError("set OPENAI_API_KEY, or give the address of a server: openai:MODEL@http://localhost:8000/v1")
    # A local server rarely needs a key, but the client does.
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
            raise  # the module exists, but one of its imports does not
        raise ValueError(f"there is no module {name!r}; for a Python file give python:path/to/file.py:NAME") from exc


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
