"""The command `clara`.

A command is a plain function with typer annotations, registered on `app`. Errors in the user's files or arguments
become one line on standard error and exit code 2, without a traceback.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from clara_core.cli.ask import ask
from clara_core.cli.bulk import compress_into_store
from clara_core.cli.calibrate import calibrate_model
from clara_core.cli.evaluate import evaluate_file
from clara_core.cli.inspect import inspect_memories
from clara_core.cli.options import AsJson, with_options
from clara_core.cli.serve import serve_model
from clara_core.cli.store import index_folder, search_store, store_app
from clara_core.cli.synthesize import synthesize_documents
from clara_core.cli.train import train_stage
from clara_core.common.announce import announce_again
from clara_core.common.announce import log as announcements
from clara_core.common.errors import CheckpointError, ClaraError
from clara_core.common.version import __version__
from clara_core.engine.options import DEFAULT_MODEL, CheckpointOptions, EngineOptions, engine_arguments, option_values
from clara_core.model.checkpoint.config import Role

if TYPE_CHECKING:
    from clara_core.model.checkpoint.io import Checkpoint

EXIT_FAILED = 2
_APPLE_LICENCE = "weights under Apple's research licence; read it on the model's page before use"


class _Group(TyperGroup):
    """Prints errors that the user can correct as one line, with exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with _log_warnings():
                return super().invoke(ctx)
        except (ClaraError, ImportError, ValueError) as exc:  # an ImportError names the missing extra
            message = " ".join(str(exc).split())
            sys.stderr.write(f"clara: {message}\n")
            raise typer.Exit(EXIT_FAILED) from exc


class _StderrHandler(logging.Handler):
    """Writes log records to the current standard error, with the prefix ``clara:``."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"clara: {record.getMessage()}\n")


@contextmanager
def _log_warnings() -> Iterator[None]:
    """Show warnings in the library's log as lines for the user, and hide Python warnings.

    The library logs its Python warnings, too. `python -W` and PYTHONWARNINGS show all Python warnings again.
    """
    notes = _StderrHandler(logging.WARNING)
    logger = logging.getLogger("clara_core")
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        logger.addHandler(notes)
        try:
            yield
        finally:
            logger.removeHandler(notes)


app = typer.Typer(
    cls=_Group,
    help="CLaRa: documents compressed into memory tokens, then searched, reranked and read.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"clara {__version__}\n")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before the command, and its notes on standard error."""
    announce_again()
    if not any(isinstance(handler, _StderrHandler) for handler in announcements.handlers):
        announcements.addHandler(_StderrHandler())
    announcements.setLevel(logging.INFO)
    announcements.propagate = False  # shown once, even if a command configures logging


app.command()(ask)
app.command("index")(index_folder)
app.command("search")(search_store)
app.command("bulk")(compress_into_store)
app.command("serve")(serve_model)
app.add_typer(store_app, name="store")
app.command("eval")(evaluate_file)
app.command("inspect")(inspect_memories)
app.command("calibrate")(calibrate_model)
app.command("synthesize")(synthesize_documents)
app.command("train")(train_stage)


@app.command()
@with_options
def info(
    model: Annotated[str, typer.Argument(help="Bundled name, folder, or Hub id.")],
    as_json: AsJson = False,
    *,
    options: EngineOptions,
) -> None:
    """Validate a checkpoint and show its contents."""
    from clara_core.model.checkpoint.io import read_checkpoint

    arguments = engine_arguments("clara info", option_values(options))
    facts = _describe(read_checkpoint(_folder(options)), model, options.base_model)
    facts |= {"device": arguments.device, "dtype": arguments.dtype, "quantization": arguments.quantization}
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    table = Table(title=model, show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value is not None:
            table.add_row(name.replace("_", " "), _shown(value))
    Console().print(table)


@app.command()
@with_options
def convert(
    model: Annotated[str, typer.Argument(metavar="SRC", help="Bundled name, folder, or Hub id.")],
    dst: Annotated[Path, typer.Argument(help="Folder to write.")],
    peft: Annotated[
        Literal["compressor", "reasoner", "generator"] | None,
        typer.Option(help="Write only the adapter of this role, as a plain peft folder."),
    ] = None,
    with_base: Annotated[
        bool, typer.Option("--with-base", help="Also copy the base decoder, which must be in a local folder.")
    ] = False,
    *,
    options: CheckpointOptions,
) -> None:
    """Convert a checkpoint to safetensors, or export one adapter for peft."""
    from clara_core.model.checkpoint.convert import convert_checkpoint
    from clara_core.model.checkpoint.io import export_peft, read_checkpoint

    checkpoint = read_checkpoint(_folder(options))
    if peft is not None:
        if with_base:
            raise ValueError("--with-base and --peft exclude each other")
        role = Role[peft.upper()]
        export_peft(checkpoint, role, dst)
        typer.echo(f"{role} of {model} -> {dst} (peft)")
        return
    written = convert_checkpoint(checkpoint, dst, base_model=options.base_model, with_base=with_base)
    roles = ", ".join(role.label for role in written.roles)
    typer.echo(f"{model} -> {dst} ({roles}; base: {written.config.decoder_model_name})")


def _folder(options: CheckpointOptions) -> Path:
    from clara_core.model.checkpoint.hub import resolve

    return resolve(
        options.model or DEFAULT_MODEL,
        options.compression,
        options.revision,
        options.token,
        options.cache_dir,
        options.local_files_only,
    )


def _describe(checkpoint: Checkpoint, model: str, base_model: str | None) -> dict[str, object]:
    """The facts of a checkpoint, in the order shown."""
    from clara_core.model.checkpoint.io import EMBED_KEY, resolve_base, weight_files

    config = checkpoint.config
    try:
        base, remark = resolve_base(config, checkpoint.folder, base_model), None
    except CheckpointError as exc:
        if base_model is not None:
            raise
        base, remark = config.decoder_model_name, str(exc)
    table = checkpoint.embeddings.get(EMBED_KEY)
    apple = model.startswith("apple/") or "models--apple--" in str(checkpoint.folder)
    return {
        "model": model,
        "folder": str(checkpoint.folder),
        "training_stage": config.training_stage,
        "roles": [role.label for role in checkpoint.roles],
        "rate": config.compr_rate,
        "memory_tokens": config.n_mem,
        "hidden": checkpoint.hidden,
        "dimension": config.n_mem * checkpoint.hidden,
        "window": config.doc_max_length,
        "lora_rank": config.lora_r,
        "vocabulary": None if table is None else table.shape[0],
        "base": base,
        "base_remark": remark,
        "bytes": sum(path.stat().st_size for path in weight_files(checkpoint.folder)),
        "identity": checkpoint.identity,
        "licence": _APPLE_LICENCE if apple else config.licence_note,
    }


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
