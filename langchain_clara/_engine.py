"""The fields that every component shares (the model, or the engine), and what is known of a model without loading it.

Components name a model or hold an engine; they never hold weights. The engine is looked up at first use, so creating a
component is cheap, and components with the same model get the same engine.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final
from weakref import WeakKeyDictionary

from pydantic import Field, field_validator, model_validator

from clara_core.common.errors import CheckpointError
from clara_core.common.suggest import refuse_unknown
from clara_core.engine.door import is_server
from clara_core.engine.options import DEFAULT_MODEL, EngineOptions, given_options, option_values
from clara_core.model.checkpoint.config import CONFIG_FILE, ClaraConfig
from clara_core.model.checkpoint.hub import BUNDLED, resolve, resolve_base

if TYPE_CHECKING:
    from clara_core import Engine

SCORE_KEY = "relevance_score"
"""Metadata key of a document's score: a Python float, the cosine in [-1, 1]."""
# Arguments of an engine that do not change its answers.
_NOT_IDENTITY: Final = frozenset({"token", "cache_dir", "local_files_only", "kv_cache_bytes"})
_WEIGHTS: Final = ("*.safetensors", "*.pth", "*.bin", "config.json", "tokenizer.json")
_WINDOWED: Final = {"mistral": 4096}
"""Sliding window of architectures whose config does not give one."""
_identities: WeakKeyDictionary[Engine, dict[str, Any]] = WeakKeyDictionary()


class EngineFields(EngineOptions):
    """Mixin of the components: ``model=`` with its options, or ``engine=``.

    The options are those of `ClaraEngine.from_pretrained`. An access token is neither shown nor serialized.

    It must be the last of the bases, so that the framework's validation runs first.
    """

    ignored_names: ClassVar[frozenset[str]] = frozenset()
    """Options that are accepted and ignored by this component."""

    engine: Any = Field(default=None, exclude=True, repr=False)
    """An `Engine`, instead of `model` and its options."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        known = {*cls.model_fields, *cls.ignored_names}
        known |= {field.alias for field in cls.model_fields.values() if field.alias}
        refuse_unknown(cls.__name__, values, known)
        return values

    @field_validator("engine")
    @classmethod
    def _check_engine(cls, value: Any) -> Any:
        if value is None:
            return None
        from clara_core import Engine

        if not isinstance(value, Engine):
            got = type(value).__name__
            # Pydantic reports a ValueError, but not a TypeError, as an error of the field.
            raise ValueError(f"engine must be a ClaraEngine or RemoteEngine, got {got}; a model's name goes to model=")  # noqa: TRY004
        return value

    @model_validator(mode="after")
    def _refuse_both(self) -> EngineFields:
        given = given_options(option_values(self))
        if self.engine is not None and given:
            raise ValueError(f"give engine= or {given[0]}=, not both: an engine has its own model and options")
        return self

    @cached_property
    def shared_engine(self) -> Engine:
        """The engine, looked up at first use; its weights load when it first computes."""
        if self.engine is not None:
            found: Engine = self.engine
            return found
        from clara_core import open_engine

        return open_engine(**option_values(self))

    @property
    def model_label(self) -> str:
        """The name of the model, as given."""
        name: str = self.engine.arguments.model if self.engine is not None else self.model or DEFAULT_MODEL
        return name

    async def ashared_engine(self) -> Engine:
        """The engine, looked up in a thread, because the first look-up imports torch and reads files."""
        if "shared_engine" not in self.__dict__:
            await asyncio.to_thread(lambda: self.shared_engine)
        return self.shared_engine


# --- a model that is not loaded ---------------------------------------------------------------------


def identity(engine: Engine) -> dict[str, Any]:
    """The arguments that answers depend on, and a stamp of the model's files, for LangChain's cache.

    The stamp of a folder consists of names, sizes and times of its files, so a model trained again in the same folder
    has another one; it is taken once for an engine. The stamp of a Hub repository is the commit, once it was
    downloaded. The stamp of a server is its fingerprint. Weights are not read, so that a cached answer needs no model.
    On another machine the stamp of a folder may differ, and the answer is then computed again.
    """
    if engine in _identities:
        return _identities[engine]
    arguments = {name: value for name, value in engine.arguments.public().items() if name not in _NOT_IDENTITY}
    if is_server(engine.arguments.model):
        return {**arguments, "weights": engine.fingerprint}
    found = {**arguments, "weights": _stamp(engine)}
    if found["weights"]:
        _identities[engine] = found
    return found


def _stamp(engine: Engine) -> str:
    """Empty if nothing is known yet."""
    facts = [fact for name in ("model", "base_model") for fact in _facts(engine, getattr(engine.arguments, name))]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16] if facts else ""


def _facts(engine: Engine, name: str | None) -> Iterator[str]:
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


def local_context(source: Any) -> int | None:
    """Most positions of a prompt and its answer together, like `ClaraEngine.context`, of the model that `source` names.

    None if the files are not on this machine (a Hub repository that was never downloaded), or do not give it.
    """
    try:
        folder = resolve(
            source.model or DEFAULT_MODEL,
            source.compression,
            source.revision,
            cache_dir=source.cache_dir,
            local_files_only=True,
        )
        base = resolve_base(ClaraConfig.read(folder), folder, source.base_model)
        path: Any = Path(base, CONFIG_FILE)
        if not path.is_absolute():
            from huggingface_hub import try_to_load_from_cache

            path = try_to_load_from_cache(base, CONFIG_FILE, cache_dir=source.cache_dir)  # None if it is not there
        config = json.loads(Path(path).read_text("utf-8"))
        positions = int(config["max_position_embeddings"])
        sliding = config.get("sliding_window", _WINDOWED.get(config.get("model_type")))
    except (CheckpointError, OSError, ValueError, KeyError, TypeError, ImportError):
        return None
    return min(positions, sliding or positions)


def profile_of(component: EngineFields) -> dict[str, Any]:
    """LangChain's profile of a component's model; without the context if `local_context` does not know it."""
    context = local_context(component if component.engine is None else component.engine.arguments)
    media = ("image", "image_url", "pdf", "audio", "video")
    return {
        "name": component.model_label,
        **({} if context is None else {"max_input_tokens": context, "max_output_tokens": context}),
        "text_inputs": True,
        **{f"{kind}_inputs": False for kind in media},
        "text_outputs": True,
        "tool_calling": False,
        "structured_output": False,
        "reasoning_output": False,
        "open_weights": True,
    }
