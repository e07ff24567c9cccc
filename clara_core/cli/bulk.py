"""``clara bulk``: a whole dataset into a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from clara_core.cli.options import arguments_of, with_options
from clara_core.common.errors import DataError
from clara_core.engine.options import EngineOptions
from clara_core.store.bulk import ROWS_PER_SHARD

if TYPE_CHECKING:
    from clara_core.store.codec import MemoryType


@with_options
def compress_into_store(
    source: Annotated[str, typer.Argument(help="Parquet, JSON lines or Lance: file, folder or object store.")],
    store: Annotated[str, typer.Argument(help="Folder or object store; made where there is none.")],
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    id_column: Annotated[str | None, typer.Option(help="Column of the ids; else made from the texts.")] = None,
    metadata_column: Annotated[list[str] | None, typer.Option(help="Column to keep; default: all others.")] = None,
    memory_type: Annotated[str, typer.Option(help="bfloat16 or int8, in a new store.")] = "bfloat16",
    workers: Annotated[int, typer.Option(help="Processes of a Ray job; 0: this process alone.")] = 0,
    rows_per_shard: Annotated[int, typer.Option(help="Documents that are lost when a worker dies.")] = ROWS_PER_SHARD,
    *,
    options: EngineOptions,
) -> None:
    """Compresses a dataset into a store; called again, it goes on where it was stopped."""
    from clara_core.store.bulk import Columns, compress_dataset

    metadata = tuple(metadata_column) if metadata_column else None
    try:
        count = compress_dataset(
            source,
            store,
            arguments_of(options),
            Columns(text_column, id_column, metadata),
            workers=workers,
            memory_type=cast("MemoryType", memory_type),
            rows_per_shard=rows_per_shard,
            show_progress=True,
        )
    except FileNotFoundError as exc:
        raise DataError(str(exc)) from exc
    typer.echo(f"{count} documents of {source} -> {store}")
