"""The options of a checkpoint or an engine as options of a command, made from their fields."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

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


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose one parameter of `CheckpointOptions` or `EngineOptions` is an option for each of their fields.

    A field for which the command has a parameter of its own, such as a positional model, is taken from there.
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

    # What typer reads: keyword parameters, so that their order says nothing but that of the help.
    whole = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in [*own, *made]]
    called.__signature__ = inspect.Signature(whole, return_annotation=None)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in whole}
    return called


def arguments_of(options: EngineOptions) -> EngineArguments:
    """The arguments of the engine that the options of a command name; where they name none, says which one answers."""
    if options.model is None:
        announce(f"no --model: {DEFAULT_MODEL!r} answers, {DEFAULT_MODEL_IS}")
    return EngineArguments(**option_values(options))


def engine_of(options: EngineOptions) -> Engine:
    """The engine of `arguments_of`."""
    from clara_core import open_engine

    return open_engine(**option_values(arguments_of(options)))


def local_engine_of(options: EngineOptions) -> ClaraEngine:
    """`engine_of` for what looks inside the model.

    Raises:
        ValueError: A server is named, which shows nobody its insides.
    """
    from clara_core import ClaraEngine

    if is_server(options.model):
        raise ValueError(f"this command needs the model itself; {options.model} is a server, run it there")
    return ClaraEngine.from_pretrained(**option_values(arguments_of(options)))


def load_watched(engine: Engine) -> None:
    """Load an engine, with a progress bar where somebody can see it."""
    engine.load(show_progress=sys.stderr.isatty())


def _is_options(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, CheckpointOptions)


def _option(name: str, field: Any) -> inspect.Parameter:
    names = [f"--{name.replace('_', '-')}"]  # of a switch, without its opposite
    option = typer.Option(*names, help=field.description, rich_help_panel=_PANEL)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.default,
        annotation=Annotated[field.annotation, option],
    )
