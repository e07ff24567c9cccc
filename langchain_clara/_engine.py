"""The fields that every component shares: which model, or which engine.

Components name a model or hold an engine; they never hold weights. The engine is looked up at
first use, so that making a component is cheap, and the same model gives the same engine to all of
them.
"""

from __future__ import annotations

import asyncio
import difflib
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field, field_validator, model_validator

if TYPE_CHECKING:
    from clara_core import ClaraEngine

DEFAULT_MODEL = "pocket"
SCORE_KEY = "relevance_score"
"""Metadata key of a document's score: a Python float, the cosine in [-1, 1]."""

ENGINE_OPTIONS = (
    "compression",
    "base_model",
    "revision",
    "device",
    "dtype",
    "quantization",
    "attn_implementation",
    "reasoner",
    "cache_dir",
    "local_files_only",
)


class EngineFields(BaseModel):
    """Mixin of the components: ``model=`` with its options, or ``engine=``.

    The options are those of `ClaraEngine.from_pretrained`, and None is what they are there by default. A component
    shows what it was made from in traces, so an access token is not among them: make an engine with it.

    It stands last among the bases, so that what the framework does after validation is done first.
    """

    ignored_names: ClassVar[frozenset[str]] = frozenset()
    """Names that are accepted and say nothing to this component."""

    model: str | None = None
    """Bundled name, folder or Hub id; "pocket" where neither this nor `engine` is given."""
    compression: int | None = None
    """Rate, where a Hub repo or a folder holds several (``compression-N``)."""
    base_model: str | None = None
    """Folder or Hub id of the base decoder, instead of the one that the checkpoint names."""
    revision: str | None = None
    """Branch, tag or commit of a Hub repo."""
    device: str | None = None
    """Such as "cpu" or "cuda:0"; chosen by the engine where None."""
    dtype: str | None = None
    """Such as "float32" or "bfloat16"; chosen by the engine where None."""
    quantization: str | None = None
    """How weights are kept: "int8" or "nf4"."""
    attn_implementation: str | None = None
    """Such as "sdpa"; chosen by the engine where None."""
    reasoner: str | None = None
    """With "encoder" the compressor reads questions where a checkpoint has no query reasoner."""
    cache_dir: str | None = None
    """Where downloads are kept."""
    local_files_only: bool | None = None
    """Never use the network."""
    engine: Any = Field(default=None, exclude=True, repr=False)
    """A `ClaraEngine`, instead of `model` and its options."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        known = {*cls.model_fields, *cls.ignored_names}
        known |= {field.alias for field in cls.model_fields.values() if field.alias}
        for name in values:
            if name not in known:
                raise ValueError(f"{cls.__name__} has no option {name!r}{nearest(name, known)}")
        return values

    @field_validator("engine")
    @classmethod
    def _check_engine(cls, value: Any) -> Any:
        if value is None:
            return None
        from clara_core import ClaraEngine

        if not isinstance(value, ClaraEngine):
            got = type(value).__name__
            # Pydantic reports a ValueError, not a TypeError, as an error of the field.
            raise ValueError(f"engine must be a ClaraEngine, got {got}; a name is model=")  # noqa: TRY004
        return value

    @model_validator(mode="after")
    def _refuse_both(self) -> EngineFields:
        given = [name for name in ("model", *ENGINE_OPTIONS) if getattr(self, name) is not None]
        if self.engine is not None and given:
            raise ValueError(f"give engine= or {given[0]}=, not both: an engine has its own model and options")
        return self

    @cached_property
    def shared_engine(self) -> ClaraEngine:
        """The engine, looked up at first use; its weights load when it first computes."""
        return self.find_engine()

    def find_engine(self) -> ClaraEngine:
        """The engine that the fields name."""
        if self.engine is not None:
            found: ClaraEngine = self.engine
            return found
        from clara_core import ClaraEngine

        options = {name: getattr(self, name) for name in ENGINE_OPTIONS if getattr(self, name) is not None}
        return ClaraEngine.from_pretrained(self.model or DEFAULT_MODEL, **options)

    @property
    def model_label(self) -> str:
        """The model as it was named."""
        name: str = self.engine.arguments.model if self.engine is not None else self.model or DEFAULT_MODEL
        return name

    async def ashared_engine(self) -> ClaraEngine:
        """The same, found in a thread: the first look-up imports torch and reads files."""
        if "shared_engine" not in self.__dict__:
            await asyncio.to_thread(lambda: self.shared_engine)
        return self.shared_engine


def nearest(name: str, known: set[str]) -> str:
    """The tail of an error about an unknown name: the known one that is most like it."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
