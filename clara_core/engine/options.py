"""The options of an engine: name, type, default and help text of each, written down once.

Every door is made of the fields of these classes: `ClaraEngine.from_pretrained`, `MemoryStore.open`, the components of
both frameworks, the commands and the configs of training. An option that is added here reaches all of them;
`from_pretrained` alone spells its signature out, and a test holds it to these fields.

Knows neither torch nor a framework, so that a component can be made without loading anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from clara_core.checkpoint.hub import BUNDLED, default_rate
from clara_core.common.announce import announce
from clara_core.common.suggest import nearest, refuse_unknown

DEFAULT_MODEL: Final = "pocket"
DEFAULT_MODEL_IS: Final = (
    "a small bundled model for trying things out: it reads short English passages of one invented encyclopedia and "
    "knows nothing else"
)

CHOICES: Final[dict[str, tuple[str | None, ...]]] = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "quantization": (None, "int8", "nf4"),
    "cpu_kernels": ("auto", "mkl", "onednn"),
    "attn_implementation": ("auto", "sdpa", "eager", "flash_attention_2"),
    "reasoner": ("auto", "encoder"),
}

Options = TypeVar("Options", bound=BaseModel)


class CheckpointOptions(BaseModel):
    """Which checkpoint, and where it is found."""

    model: str | None = Field(
        default=None, description=f"Hub id, folder, or bundled name; {DEFAULT_MODEL!r} where none is named."
    )
    compression: int | None = Field(
        default=None,
        description="Rate, where a repo or folder holds several (compression-N); the smallest is the most exact, "
        "and taken where none is given.",
    )
    base_model: str | None = Field(
        default=None, description="Hub id or folder of the base decoder, instead of the one that the checkpoint names."
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a Hub repo.")
    token: str | None = Field(
        default=None,
        repr=False,
        exclude=True,
        description="Access token of the Hub, if not the one that the Hub's client finds (HF_TOKEN).",
    )
    cache_dir: str | None = Field(default=None, description="Where downloads are kept, if not the Hub's own cache.")
    local_files_only: bool = Field(default=False, description="Never use the network.")

    @field_validator("model", "base_model", "cache_dir", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("compression", mode="before")
    @classmethod
    def _rate(cls, value: Any) -> Any:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"compression must be a positive int such as 16, got {value!r}")
        return value

    def __getstate__(self) -> dict[Any, Any]:
        # An access token is not written anywhere.
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "token": None}}


class EngineOptions(CheckpointOptions):
    """A checkpoint, and how it is run."""

    device: str = Field(default="auto", description="'auto', or a torch device such as 'cpu' or 'cuda:0'.")
    dtype: str = Field(
        default="auto",
        description="'auto' (bfloat16 on a GPU, float32 elsewhere), 'float32', 'bfloat16' or 'float16'.",
    )
    quantization: str | None = Field(
        default=None,
        description="How weights are kept: 'int8' or 'nf4' (bitsandbytes; int8 on a processor needs no package).",
    )
    attn_implementation: str = Field(
        default="auto", description="'auto', 'sdpa', 'eager' or 'flash_attention_2' (what attention runs on)."
    )
    cpu_kernels: str = Field(
        default="auto",
        description="What multiplies on a processor: 'auto' (measured when a model loads), 'mkl' or 'onednn'.",
    )
    reasoner: str = Field(
        default="auto",
        description="'encoder' lets the compressor read questions where a checkpoint has no query reasoner.",
    )
    kv_cache_bytes: int | None = Field(
        default=None,
        gt=0,
        description="Bytes set aside for the keys and values of all answers being written; if not given, most of what "
        "is free when the first one is.",
    )

    @field_validator("device", mode="before")
    @classmethod
    def _name_of_device(cls, value: Any) -> Any:
        return value if value is None else str(value)

    @field_validator(*CHOICES)
    @classmethod
    def _choice(cls, value: str | None, info: Any) -> str | None:
        allowed = CHOICES[info.field_name]
        if value not in allowed:
            names = ", ".join(map(repr, allowed))
            raise ValueError(f"{info.field_name} must be one of {names}, got {value!r}{nearest(value, allowed)}")
        return value


OPTIONS: Final = tuple(EngineOptions.model_fields)
"""Names of all options."""

SHARED: Final = ("token", "kv_cache_bytes")
"""Options of one engine that may differ between those who share it: whoever gave one last decides."""


class EngineArguments(EngineOptions):
    """The arguments of `ClaraEngine.from_pretrained`, as values that can be compared.

    The access token is no part of an engine's identity, is not shown and not pickled. Nor does the size of the KV
    memory tell engines apart: who asks for the same model with more of it shares the one that is there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = DEFAULT_MODEL

    @field_validator("model", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return DEFAULT_MODEL if value is None else value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EngineArguments) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in OPTIONS if name not in SHARED)

    def joined(self, other: Self) -> Self:
        """These arguments with what an equal one says of that which is no part of the identity."""
        said = {name: value for name in SHARED if (value := getattr(other, name)) is not None}
        return self.model_copy(update=said)

    def resolved(self) -> Self:
        """The same arguments with every "auto", every path and a rate that follows made definite.

        Raises:
            ValueError: A device that is not here.
        """
        from clara_core.model.devices import default_dtype, definite_device

        device = definite_device(self.device)
        model = _definite(self.model)
        return self.model_copy(
            update={
                "model": model,
                "compression": default_rate(model, self.compression, self.revision),
                "base_model": None if self.base_model is None else _definite(self.base_model),
                "device": str(device),
                "dtype": default_dtype(device) if self.dtype == "auto" else self.dtype,
                "cache_dir": None if self.cache_dir is None else str(Path(self.cache_dir).resolve()),
            }
        )

    def public(self) -> dict[str, Any]:
        """Everything but the access token."""
        return {name: getattr(self, name) for name in OPTIONS if name != "token"}

    def hub(self) -> dict[str, Any]:
        """What transformers needs to find a base decoder."""
        return {
            "token": self.token,
            "cache_dir": self.cache_dir,
            "local_files_only": self.local_files_only,
            "trust_remote_code": False,
        }


def checked(kind: type[Options], values: Mapping[str, Any], owner: str) -> Options:
    """Options of a call.

    Args:
        kind: Which options there are.
        values: Those that are given, by name.
        owner: The class or function that was called.

    Raises:
        UnknownOption: One that it does not have.
        ValueError: A value that cannot be; says which, in one sentence each.
    """
    refuse_unknown(owner, values, kind.model_fields)
    try:
        return kind.model_validate(dict(values))
    except ValidationError as exc:
        raise ValueError("; ".join(map(sentence, exc.errors()))) from exc


def sentence(fault: Any) -> str:
    """What pydantic found wrong with a value, as one sentence."""
    name = ".".join(str(part) for part in fault["loc"])
    message = str(fault["msg"])
    said = message.removeprefix("Value error, ")
    # Our own messages name the option and the value.
    return said if said != message or not name else f"{name}: {said}, got {fault['input']!r}"


def engine_arguments(owner: str, values: Mapping[str, Any]) -> EngineArguments:
    """The definite arguments of an engine; where no model is named, says which one answers.

    Raises:
        UnknownOption: An option that no engine has.
        ValueError: A value that no engine can have.
    """
    arguments = checked(EngineArguments, values, owner).resolved()
    if values.get("model") is None:
        announce_default()
    return arguments


def announce_default() -> None:
    """Say which model answers where none was named."""
    announce(f"no model is named: {DEFAULT_MODEL!r} answers, {DEFAULT_MODEL_IS}")


def option_values(options: EngineOptions) -> dict[str, Any]:
    """Values of all options, of an object that may have other fields besides."""
    return {name: getattr(options, name) for name in OPTIONS}


def given_options(values: Mapping[str, Any]) -> list[str]:
    """Names of the options that say something: not what they are by default."""
    fields = EngineOptions.model_fields
    return [name for name in OPTIONS if name in values and values[name] != fields[name].default]


# --- what "auto" and a path are here ---------------------------------------------------------------------


def _definite(name: str) -> str:
    if name in BUNDLED or not Path(name).exists():
        return name
    folder = Path(name).resolve()
    return next((bundled for bundled, place in BUNDLED.items() if place == folder), str(folder))
