"""The command `clara bulk`: compresses a whole dataset into a store."""

from __future__ import annotations

from typing import Annotated

import typer

from clara_core.cli.options import MemoryType, arguments_of, with_options
from clara_core.common.errors import DataError
from clara_core.engine.options import EngineOptions
from clara_core.store.bulk import ROWS_PER_SHARD


@with_options
def compress_into_store(
    source: Annotated[
        str, typer.Argument(help="Dataset in Parquet, JSON lines or Lance: file, folder or address on object storage.")
    ],
    store: Annotated[
        str, typer.Argument(help="Folder of the store, or its address on object storage; created if missing.")
    ],
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    id_column: Annotated[str | None, typer.Option(help="Column of the ids; default: ids made from the texts.")] = None,
    metadata_column: Annotated[
        list[str] | None, typer.Option(help="Column to keep as metadata; may be repeated; default: all other columns.")
    ] = None,
    memory_type: MemoryType = "bfloat16",
    workers: Annotated[int, typer.Option(help="Processes of a Ray job; 0: this process alone.")] = 0,
    rows_per_shard: Annotated[
        int, typer.Option(help="Documents of a shard, the work lost when a worker dies.")
    ] = ROWS_PER_SHARD,
    *,
    options: EngineOptions,
) -> None:
    """Compress a dataset into a store; if it was stopped, run it again to resume."""
    from clara_core.store.bulk import Columns, compress_dataset

    metadata = tuple(metadata_column) if metadata_column else None
    try:
        count = compress_dataset(
            source,
            store,
            arguments_of(options),
            Columns(text_column, id_column, metadata),
            workers=workers,
            memory_type=memory_type,
            rows_per_shard=rows_per_shard,
            show_progress=True,
        )
    except FileNotFoundError as exc:
        raise DataError(str(exc)) from exc
    typer.echo(f"{count} documents of {source} -> {store}")
