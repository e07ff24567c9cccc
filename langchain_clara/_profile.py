"""Reads the context length of a model from local files, without loading the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from clara_core.checkpoint.config import CONFIG_FILE, ClaraConfig
from clara_core.checkpoint.hub import resolve, resolve_base
from clara_core.common.errors import CheckpointError
from clara_core.engine.options import DEFAULT_MODEL

_WINDOWED: Final = {"mistral": 4096}
"""Sliding window of architectures whose config does not give one."""


def local_context(source: Any) -> int | None:
    """Most positions of a prompt and its answer together, equal to `ClaraEngine.context`.

    Args:
        source: The fields that name the model: `EngineFields` or `EngineArguments`.

    Returns:
        int | None: None if the files are not on this machine (a Hub repository that was never downloaded), or do
        not give it.
    """
    try:
        folder = resolve(
            source.model or DEFAULT_MODEL,
            source.compression,
            source.revision,
            cache_dir=source.cache_dir,
            local_files_only=True,
        )
        base = Path(resolve_base(ClaraConfig.read(folder), folder, source.base_model))
        path = base / CONFIG_FILE if base.is_absolute() else _fetched(base.as_posix(), source.cache_dir)
        config = json.loads(path.read_text("utf-8"))
        positions = int(config["max_position_embeddings"])
        sliding = config.get("sliding_window", _WINDOWED.get(config.get("model_type")))
    except (CheckpointError, OSError, ValueError, KeyError, TypeError, ImportError):
        return None
    return min(positions, sliding or positions)


def _fetched(repo: str, cache_dir: str | None) -> Path:
    """The config of a base decoder in the local Hub cache.

    Raises:
        FileNotFoundError: It was never downloaded.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, CONFIG_FILE, cache_dir=cache_dir)
    if not isinstance(found, str):
        raise FileNotFoundError(repo)
    return Path(found)
