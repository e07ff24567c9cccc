"""The size of the KV cache of all answers, and the error of a request that can never fit it."""

from __future__ import annotations

import logging

from clara_core.common.errors import ContextOverflow
from clara_core.engine.requests import GenerateRequest, Limits
from clara_core.model.decoder import ClaraModel
from clara_core.model.devices import free_bytes, is_out_of_memory, release_memory
from clara_core.model.kernels import PAGE
from clara_core.model.kv_memory import KVMemory

log = logging.getLogger(__name__)

SHARE = 0.8  # of the free memory of a GPU, after the weights and the activations of one batch


def allocate(model: ClaraModel, limits: Limits, kv_bytes: int | None, most_pages: int | None) -> KVMemory:
    """Allocate the KV cache; if memory runs out, with half the pages, and so on.

    Args:
        model: The model that uses it.
        limits: Sizes of batches.
        kv_bytes: Most bytes; None: a share of the free memory.
        most_pages: Most pages, after passes have run out of memory; None: no further limit.

    Raises:
        Exception: Not even one page can be allocated.
    """
    shape = model.kv_shape()
    wanted = kv_bytes
    if wanted is None:
        free = free_bytes(shape.device)
        batch = limits.tokens * model.activation_bytes()
        wanted = int(SHARE * max(free - batch, free // 2))
    # All rows together cannot fill more pages than this.
    pages = min(max(wanted // shape.page_bytes, 1), limits.rows * -(-model.context // PAGE))
    pages = min(pages, most_pages or pages)
    while True:
        try:
            return model.kv_memory(pages)
        except Exception as exc:
            if not is_out_of_memory(exc) or pages == 1:
                raise
        log.warning("out of memory with a KV cache of %d bytes: going on with half", pages * shape.page_bytes)
        release_memory()
        pages //= 2


def too_large(request: GenerateRequest, memory: KVMemory) -> ContextOverflow:
    """The error of a request that needs more positions than the whole KV cache has."""
    prompt, limit = len(request.ids), request.sequence.limit
    return ContextOverflow(
        f"the prompt of {prompt} positions and an answer of up to {limit} tokens take {prompt + limit} positions, but "
        f"the KV cache holds {memory.columns} ({memory.total_bytes:,} bytes); lower max_tokens, give fewer documents, "
        "or raise kv_cache_bytes"
    )
