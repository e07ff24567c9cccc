"""The fields that every component shares: which model, or which engine.

Components name a model or hold an engine; they never hold weights. The engine stands in a private attribute, which
LlamaIndex neither serializes nor shows; what it was made from stands in public fields, from which a pickled component
finds it again and by which an `IngestionPipeline` tells models apart.
"""

from __future__ import annotations

import asyncio
import difflib
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

from llama_index.core.schema import BaseComponent
from pydantic import Field, PrivateAttr

if TYPE_CHECKING:
    from clara_core import ClaraEngine

DEFAULT_MODEL: Final = "pocket"
OPTIONS: Final = (
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


class EngineFields(BaseComponent):
    """Mixin of the components: ``model=`` with its options, or ``engine=``.

    The options are those of `ClaraEngine.from_pretrained`. An access token is not among them, since a component shows
    its fields in traces: make an engine with it. The mixin stands first among the bases.
    """

    holds_weights: ClassVar[bool] = True
    """Whether the component makes its engine load weights, so that other processes should not get copies of it."""

    model: str = Field(default=DEFAULT_MODEL, description="Bundled name, folder or Hub id.")
    compression: int | None = Field(default=None, description="Rate, where a repo holds several.")
    base_model: str | None = Field(default=None, description="Base decoder instead of the one that is named.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of a Hub repo.")
    device: str = Field(default="auto", description='Such as "cpu" or "cuda:0".')
    dtype: str = Field(default="auto", description='Such as "float32" or "bfloat16".')
    quantization: str | None = Field(default=None, description='How weights are kept: "int8" or "nf4".')
    attn_implementation: str = Field(default="auto", description='Such as "sdpa".')
    reasoner: str = Field(default="auto", description='"encoder": the compressor reads questions where needed.')
    cache_dir: str | None = Field(default=None, description="Where downloads are kept.")
    local_files_only: bool = Field(default=False, description="Never use the network.")

    _engine: Any = PrivateAttr(default=None)

    def __init__(self, engine: ClaraEngine | None = None, **options: Any) -> None:
        """Make a component of a model (``model=`` and its options) or of an ``engine=``.

        Raises:
            TypeError: An option that this component does not have; names the nearest one.
            ValueError: Both an engine and a model.
        """
        refuse_unknown(type(self).__name__, options, _names(type(self)))
        if engine is not None:
            options |= fields_of(engine, options)
        super().__init__(**options)
        self._engine = engine

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if cls.holds_weights:
            # What multiprocessing sends to its workers, as opposed to a pickle that someone makes and reads.
            ForkingPickler.register(cls, _refuse_to_be_sent)

    @property
    def engine(self) -> ClaraEngine:
        """The engine, looked up at first use; its weights load when it first computes."""
        if self._engine is None:
            self._engine = find_engine(self.model, {name: getattr(self, name) for name in OPTIONS})
        found: ClaraEngine = self._engine
        return found

    async def aengine(self) -> ClaraEngine:
        """The same, found in a thread: the first look-up imports torch and reads files."""
        return self.engine if self._engine is not None else await asyncio.to_thread(lambda: self.engine)

    def __getstate__(self) -> dict[str, Any]:
        # The framework's own would take what cannot be pickled off the living object. Private attributes follow from
        # the fields.
        hidden = {name for name, field in type(self).model_fields.items() if field.exclude}
        return {"__dict__": {name: value for name, value in self.__dict__.items() if name not in hidden}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["__dict__"])  # type: ignore[misc]


def find_engine(model: str, options: dict[str, Any]) -> ClaraEngine:
    """The engine of a model and its options; the same one for everybody."""
    from clara_core import ClaraEngine

    return ClaraEngine.from_pretrained(model, **options)


def fields_of(engine: object, given: dict[str, Any]) -> dict[str, Any]:
    """What a given engine was made from, as fields.

    Raises:
        TypeError: It is no engine.
        ValueError: A model or one of its options is given as well.
    """
    from clara_core import ClaraEngine

    if not isinstance(engine, ClaraEngine):
        raise TypeError(f"engine must be a ClaraEngine, got {type(engine).__name__}; a name is model=")
    both = [name for name in ("model", *OPTIONS) if name in given]
    if both:
        raise ValueError(f"give engine= or {both[0]}=, not both: an engine has its own model and options")
    return engine.arguments.public()


def refuse_unknown(owner: str, given: dict[str, Any], known: set[str]) -> None:
    """Refuse options that nobody reads.

    Raises:
        TypeError: Names the first one and the known one that is most like it.
    """
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{owner} has no option {name!r}{hint}")


def _names(component: type[BaseComponent]) -> set[str]:
    # Serialized components carry their class name along.
    return {*component.model_fields, "class_name"}


def _refuse_to_be_sent(component: BaseComponent) -> NoReturn:
    raise TypeError(
        f"{type(component).__name__} is not sent to other processes, each of which would load the model again. Leave "
        "num_workers at None: one engine makes its own batches. Or make the component inside the worker."
    )
