"""The fields that every component shares: the model, or the engine.

Components name a model or hold an engine; they never hold weights. The engine is looked up at first use, so creating a
component is cheap, and components with the same model get the same engine.
"""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from clara_core.common.suggest import refuse_unknown
from clara_core.engine.options import DEFAULT_MODEL, EngineOptions, given_options, option_values

if TYPE_CHECKING:
    from clara_core import Engine

SCORE_KEY = "relevance_score"
"""Metadata key of a document's score: a Python float, the cosine in [-1, 1]."""


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
        return self.find_engine()

    def find_engine(self) -> Engine:
        """The engine of the fields."""
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
