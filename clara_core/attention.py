"""Attention behind the interface of transformers: flash where it is usable, and a plain product for decode steps.

Letters of shapes: a decode step asks with one position a row, ``query [rows, heads, 1, dim]``, over ``key`` and
``value [rows, kv_heads, used, dim]``.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

FLASH = "clara_flash"
PROCESSOR = "clara_processor"


def flash_problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why flash attention cannot be used, or None if it can."""
    if device.type != "cuda":
        return f"it needs a CUDA device, this is {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it needs bfloat16 or float16, this is {dtype}"
    if find_spec("flash_attn") is None:
        return "flash-attn is not installed (pip install 'clara-rag[flash-attn]')"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"it needs compute capability 8.0, this device has {major}.{minor}"


def register_attention() -> None:
    """Make `FLASH` and `PROCESSOR` known to transformers."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    for name, function in ((FLASH, flash_or_sdpa), (PROCESSOR, product_or_sdpa)):
        AttentionInterface.register(name, function)
        # Where a mask is asked for it is the additive one of sdpa; a plain causal pass needs none.
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def flash_or_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Flash for plain causal passes (passages, questions, prompts), sdpa for ragged decode steps with their mask."""
    name = "flash_attention_2" if attention_mask is None else "sdpa"
    return _by_transformers(name, module, query, key, value, attention_mask, options)


def product_or_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Plain products for decode steps in float32, sdpa for all else.

    For one position a row the fused kernel of the processor costs four times as much as the two products it fuses, and
    each key/value head would be copied for every query head of its group.
    """
    if attention_mask is None or query.shape[2] > 1 or query.dtype is not torch.float32:
        return _by_transformers("sdpa", module, query, key, value, attention_mask, options)
    rows, heads, _, dim = query.shape
    groups = query.view(rows, key.shape[1], -1, dim)  # [rows, kv_heads, group, dim]
    scores = (groups * options["scaling"]) @ key.transpose(2, 3) + attention_mask  # [rows, kv_heads, group, used]
    read = scores.softmax(-1) @ value  # [rows, kv_heads, group, dim]
    return read.view(rows, 1, heads, dim), None


def _by_transformers(
    name: str,
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    output: tuple[Tensor, Tensor | None] = ALL_ATTENTION_FUNCTIONS[name](
        module, query, key, value, attention_mask, **options
    )
    return output
