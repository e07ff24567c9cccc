"""Identifies a model for LangChain's cache without loading it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from clara_core.engine.door import is_server

if TYPE_CHECKING:
    from clara_core import Engine

# Arguments of an engine that do not change its answers.
_NOT_IDENTITY: Final = frozenset({"token", "cache_dir", "local_files_only", "kv_cache_bytes"})
_WEIGHTS: Final = ("*.safetensors", "*.pth", "*.bin", "config.json", "tokenizer.json")
_stamps: WeakKeyDictionary[Engine, str] = WeakKeyDictionary()


def identity(engine: Engine) -> dict[str, Any]:
    """The arguments that answers depend on, and a stamp of the model's files.

    The stamp of a folder consists of names, sizes and times of its files, so a model trained again in the same folder
    has another one; it is taken once for an engine. The stamp of a Hub repository is the commit, once it was
    downloaded. The stamp of a server is its fingerprint. Weights are not read, so that a cached answer needs no model.
    On another machine the stamp of a folder may differ, and the answer is then computed again.
    """
    arguments = {name: value for name, value in engine.arguments.public().items() if name not in _NOT_IDENTITY}
    if is_server(engine.arguments.model):
        return {**arguments, "weights": engine.fingerprint}
    stamp = _stamps.get(engine)
    if stamp is None:
        stamp = _stamp(engine)
        if stamp:
            _stamps[engine] = stamp
    return {**arguments, "weights": stamp}


def _stamp(engine: Engine) -> str:
    """Empty if nothing is known yet."""
    facts = [fact for name in ("model", "base_model") for fact in _facts(engine, getattr(engine.arguments, name))]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16] if facts else ""


def _facts(engine: Engine, name: str | None) -> Iterator[str]:
    from clara_core.checkpoint.hub import BUNDLED

    if name is None:
        return
    folder = BUNDLED.get(name, Path(name))
    if folder.is_dir():
        rate = folder / f"compression-{engine.arguments.compression}"
        folder = rate if rate.is_dir() else folder
        for path in sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
            found = path.stat()
            yield f"{path.name} {found.st_size} {found.st_mtime_ns}"
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(engine.arguments.cache_dir or HF_HUB_CACHE)
    commit = cache / f"models--{name.replace('/', '--')}" / "refs" / (engine.arguments.revision or "main")
    if commit.is_file():
        yield f"{name} {commit.read_text().strip()}"
