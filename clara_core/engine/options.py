"""The options of an engine: the name, type, default and help text of each.

All entry points derive their options from the fields of these classes: `ClaraEngine.from_pretrained`,
`MemoryStore.open`, the components of both frameworks, the commands and the configs of training. An option added here
reaches all of them; only `from_pretrained` spells out its signature, which a test compares with these fields.

This module imports neither torch nor a framework, so that a component can be created without loading anything.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from clara_core.common.announce import announce
from clara_core.common.suggest import nearest, refuse_unknown
from clara_core.model.checkpoint.hub import BUNDLED, default_rate

DEFAULT_MODEL: Final = "pocket"
DEFAULT_MODEL_IS: Final = (
    "a small bundled model for trying things out: it reads short passages of plain English and answers five in ten "
    "everyday questions rightly"
)

CHOICES: Final[dict[str, tuple[str | None, ...]]] = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "quantization": (None, "int8", "nf4"),
    "cpu_kernels": ("auto", "mkl", "onednn"),
    "cuda_graphs": ("auto", "off"),
    "attn_implementation": ("auto", "sdpa", "eager", "flash_attention_2"),
    "reasoner": ("auto", "encoder"),
}

Options = TypeVar("Options", bound=BaseModel)


class CheckpointOptions(BaseModel):
    """The checkpoint and its location."""

    model: str | None = Field(
        default=None, description=f"Hub id, folder, or bundled name; {DEFAULT_MODEL!r} if none is given."
    )
    compression: int | None = Field(
        default=None,
        description="Rate, if a repo or folder holds several (compression-N); default: the smallest, which is the "
        "most exact.",
    )
    base_model: str | None = Field(
        default=None, description="Hub id or folder of the base decoder, if not the one that the checkpoint names."
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a Hub repo.")
    token: str | None = Field(
        default=None,
        repr=False,
        exclude=True,
        description="Access token of the Hub; default: the one that the Hub's client finds (HF_TOKEN).",
    )
    cache_dir: str | None = Field(default=None, description="Folder of downloads; default: the Hub's own cache.")
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
        # The access token is never pickled.
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "token": None}}


class EngineOptions(CheckpointOptions):
    """The checkpoint, and how the model runs."""

    device: str = Field(default="auto", description="'auto', or a torch device such as 'cpu' or 'cuda:0'.")
    dtype: str = Field(
        default="auto",
        description="'auto' (bfloat16 on a GPU, float32 elsewhere), 'float32', 'bfloat16' or 'float16'.",
    )
    quantization: str | None = Field(
        default=None,
        description="Quantization of the weights: 'int8' or 'nf4' (bitsandbytes; int8 on a CPU needs no package).",
    )
    attn_implementation: str = Field(
        default="auto", description="Attention: 'auto', 'sdpa', 'eager' or 'flash_attention_2'."
    )
    cpu_kernels: str = Field(
        default="auto",
        description="Matrix kernels on a CPU: 'auto' (measured when a model loads), 'mkl' or 'onednn'.",
    )
    cuda_graphs: str = Field(
        default="off",
        description="CUDA graphs of decode steps: 'off', or 'auto' (where they can be captured; not run on a card yet)",
    )
    reasoner: str = Field(
        default="auto",
        description="'encoder' lets the compressor read questions if a checkpoint has no query reasoner.",
    )
    kv_cache_bytes: int | None = Field(
        default=None,
        gt=0,
        description="Bytes of the KV cache of all running answers; default: most of the free memory at the first "
        "answer.",
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
"""Options that do not identify an engine: callers that share one may differ in them, and the last value applies."""


class EngineArguments(EngineOptions):
    """The arguments of `ClaraEngine.from_pretrained`, comparable and hashable.

    The options in `SHARED` do not take part in comparisons: callers that differ in these alone share one engine. The
    access token is neither shown nor pickled.
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
        """These arguments, with the options in `SHARED` of equal arguments if they are given there."""
        given = {name: value for name in SHARED if (value := getattr(other, name)) is not None}
        return self.model_copy(update=given)

    def resolved(self) -> Self:
        """The same arguments with a definite device, dtype and rate, and absolute paths.

        Raises:
            ValueError: The device does not exist here.
        """
        from clara_core.model.devices import default_dtype, definite_device

        device = definite_device(self.device)
        model = _absolute(self.model)
        return self.model_copy(
            update={
                "model": model,
                "compression": default_rate(model, self.compression, self.revision),
                "base_model": None if self.base_model is None else _absolute(self.base_model),
                "device": str(device),
                "dtype": default_dtype(device) if self.dtype == "auto" else self.dtype,
                "cache_dir": None if self.cache_dir is None else str(Path(self.cache_dir).resolve()),
            }
        )

    def public(self) -> dict[str, Any]:
        """Everything but the access token."""
        return {name: getattr(self, name) for name in OPTIONS if name != "token"}

    def hub(self) -> dict[str, Any]:
        """Keyword arguments of ``from_pretrained`` in transformers."""
        return {
            "token": self.token,
            "cache_dir": self.cache_dir,
            "local_files_only": self.local_files_only,
            "trust_remote_code": False,
        }


def checked(kind: type[Options], values: Mapping[str, Any], owner: str) -> Options:
    """Validate the options of a call.

    Args:
        kind: Class with the known options.
        values: Given options by name.
        owner: Name of the class or function that was called, for messages.

    Raises:
        UnknownOption: An option is unknown.
        ValueError: Values are invalid; the message has a sentence for each.
    """
    refuse_unknown(owner, values, kind.model_fields)
    try:
        return kind.model_validate(dict(values))
    except ValidationError as exc:
        raise ValueError("; ".join(map(sentence, exc.errors()))) from exc


def sentence(fault: Any) -> str:
    """An error of pydantic as one sentence."""
    name = ".".join(str(part) for part in fault["loc"])
    message = str(fault["msg"])
    reason = message.removeprefix("Value error, ")
    # Messages of our own validators name the option and the value already.
    return reason if reason != message or not name else f"{name}: {reason}, got {fault['input']!r}"


def engine_arguments(owner: str, values: Mapping[str, Any]) -> EngineArguments:
    """The resolved arguments of an engine; announces the default model if none is given.

    Raises:
        UnknownOption: An option is unknown.
        ValueError: A value is invalid.
    """
    arguments = checked(EngineArguments, values, owner).resolved()
    if values.get("model") is None:
        announce_default()
    return arguments


def announce_default() -> None:
    """Announce the default model."""
    announce(f"no model is named: {DEFAULT_MODEL!r} answers, {DEFAULT_MODEL_IS}")


def option_values(options: EngineOptions) -> dict[str, Any]:
    """Values of all options, from an object that may have other fields, too."""
    return {name: getattr(options, name) for name in OPTIONS}


def given_options(values: Mapping[str, Any]) -> list[str]:
    """Names of the options whose values differ from the defaults."""
    fields = EngineOptions.model_fields
    return [name for name in OPTIONS if name in values and values[name] != fields[name].default]


def _absolute(name: str) -> str:
    if name in BUNDLED or not Path(name).exists():
        return name
    folder = Path(name).resolve()
    return next((bundled for bundled, place in BUNDLED.items() if place == folder), str(folder))
