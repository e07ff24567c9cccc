"""The fields that every component shares: the model, or the engine.

Components name a model or hold an engine; they never hold weights. The engine is a private attribute, which LlamaIndex
neither serializes nor shows. Public fields hold its arguments: an unpickled component finds the engine by them, and an
`IngestionPipeline` distinguishes models by them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

from llama_index.core.schema import BaseComponent
from pydantic import Field, PrivateAttr

from clara_core.common.suggest import refuse_unknown
from clara_core.engine.options import DEFAULT_MODEL, EngineOptions, announce_default, given_options, option_values

if TYPE_CHECKING:
    from clara_core import Engine


_ALWAYS: Final = ("class_name",)  # part of every serialized component


class EngineFields(EngineOptions, BaseComponent):
    """Mixin of the components: ``model=`` with its options, or ``engine=``.

    The options are those of `ClaraEngine.from_pretrained`. An access token is neither shown nor serialized. The mixin
    must be the first of the bases.
    """

    holds_weights: ClassVar[bool] = True
    """Whether the component loads weights, so that it must not be copied to other processes."""

    model: str = Field(default=DEFAULT_MODEL, description=EngineOptions.model_fields["model"].description)

    _engine: Any = PrivateAttr(default=None)

    def __init__(self, engine: Engine | None = None, **options: Any) -> None:
        """Create a component from a model (``model=`` and its options) or an ``engine=``.

        Raises:
            UnknownOption: The component does not have the option; the message names the most similar one.
            ValueError: Both an engine and a model are given.
        """
        refuse_unknown(type(self).__name__, options, [*type(self).model_fields, *_ALWAYS])
        if engine is not None:
            options |= _fields_of(engine, options)
        elif options.get("model") is None:
            announce_default()
            options["model"] = DEFAULT_MODEL
        super().__init__(**options)
        self._engine = engine

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if cls.holds_weights:
            # multiprocessing calls this for objects that it sends to workers, unlike a plain pickle.
            ForkingPickler.register(cls, _refuse_to_be_sent)

    @classmethod
    def class_name(cls) -> str:
        """Name in serialized components and traces; a subclass of a component keeps it."""
        return next(base.__name__ for base in cls.__mro__ if base.__module__.startswith("llama_index_clara."))

    @property
    def engine(self) -> Engine:
        """The engine, looked up at first use; its weights load when it first computes."""
        if self._engine is None:
            from clara_core import open_engine

            self._engine = open_engine(**option_values(self))
        found: Engine = self._engine
        return found

    async def aengine(self) -> Engine:
        """The engine, looked up in a thread, because the first look-up imports torch and reads files."""
        return self.engine if self._engine is not None else await asyncio.to_thread(lambda: self.engine)

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex's own method reads the live object for attributes that cannot be pickled. Here private attributes
        # are made from the fields.
        hidden = {name for name, field in type(self).model_fields.items() if field.exclude}
        return {"__dict__": {name: value for name, value in self.__dict__.items() if name not in hidden}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["__dict__"])  # type: ignore[misc]


def _fields_of(engine: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with the arguments of a given engine.

    Raises:
        TypeError: It is not an engine.
        ValueError: A model or one of its options is given as well.
    """
    from clara_core import Engine

    if not isinstance(engine, Engine):
        got = type(engine).__name__
        raise TypeError(f"engine must be a ClaraEngine or RemoteEngine, got {got}; a model's name goes to model=")
    both = given_options(given)
    if both:
        raise ValueError(f"give engine= or {both[0]}=, not both: an engine has its own model and options")
    return engine.arguments.public()


def _refuse_to_be_sent(component: BaseComponent) -> NoReturn:
    raise TypeError(
        f"{type(component).__name__} is not sent to other processes, each of which would load the model again. Leave "
        "num_workers at None: one engine makes its own batches. Or make the component inside the worker."
    )
