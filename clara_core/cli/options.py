"""Turns the fields of `CheckpointOptions` and `EngineOptions` into options of commands, and opens their engines."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from clara_core.common.announce import announce
from clara_core.engine.door import is_server
from clara_core.engine.options import (
    DEFAULT_MODEL,
    DEFAULT_MODEL_IS,
    CheckpointOptions,
    EngineArguments,
    EngineOptions,
    checked,
    option_values,
)

if TYPE_CHECKING:
    from clara_core import ClaraEngine, Engine

_PANEL = "Model"


# Options and arguments of several commands.
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first so many questions.")]
MemoryType = Annotated[
    Literal["float32", "bfloat16", "int8"],
    typer.Option(help="Type of the memories in a new store; int8 takes half the bytes of bfloat16."),
]
Mode = Annotated[
    Literal["memory", "text", "hybrid"], typer.Option(help="Search by memory, by words (text), or by both.")
]
Questions = Annotated[
    Path, typer.Argument(help="Questions with candidates and answers: .jsonl, .jsonl.gz or .parquet.")
]
TopK = Annotated[int, typer.Option("--top-k", min=1, help="Documents to read for a question.")]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter of type `CheckpointOptions` or `EngineOptions` by an option for each of its fields.

    If the command has a parameter with the name of a field, such as a positional model, the field is taken from it.
    """
    parameters = inspect.signature(command, eval_str=True).parameters
    place, kind = next((name, one.annotation) for name, one in parameters.items() if _is_options(one.annotation))
    own = [one for name, one in parameters.items() if name != place]
    taken = [name for name in kind.model_fields if name in parameters]
    made = [_option(name, field) for name, field in kind.model_fields.items() if name not in taken]

    @wraps(command)
    def called(**given: Any) -> None:
        values = {one.name: given.pop(one.name) for one in made} | {name: given[name] for name in taken}
        options = checked(kind, values, "clara")
        command(**given, **{place: options})

    # The signature that typer reads; keyword parameters, because their order is only that of the help text.
    whole = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in [*own, *made]]
    called.__signature__ = inspect.Signature(whole, return_annotation=None)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in whole}
    return called


def arguments_of(options: EngineOptions) -> EngineArguments:
    """The engine arguments of a command's options; announces the default model if none is given."""
    if options.model is None:
        announce(f"no --model: {DEFAULT_MODEL!r} answers, {DEFAULT_MODEL_IS}")
    return EngineArguments(**option_values(options))


def engine_of(options: EngineOptions) -> Engine:
    """Open the engine of a command's options."""
    from clara_core import open_engine

    return open_engine(**option_values(arguments_of(options)))


def local_engine_of(options: EngineOptions) -> ClaraEngine:
    """Open the engine of a command that needs the model in this process.

    Raises:
        ValueError: The model is the address of a server.
    """
    from clara_core import ClaraEngine

    if is_server(options.model):
        raise ValueError(f"this command needs the model itself, but {options.model} is a server; run the command there")
    return ClaraEngine.from_pretrained(**option_values(arguments_of(options)))


def load_watched(engine: Engine) -> None:
    """Load an engine, with a progress bar on a terminal."""
    engine.load(show_progress=sys.stderr.isatty())


def _is_options(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, CheckpointOptions)


def _option(name: str, field: Any) -> inspect.Parameter:
    names = [f"--{name.replace('_', '-')}"]  # a switch gets no "--no-" form
    option = typer.Option(*names, help=field.description, rich_help_panel=_PANEL)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.default,
        annotation=Annotated[field.annotation, option],
    )
