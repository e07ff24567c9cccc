"""Flash attention where it is installed and usable, behind the interface that transformers gives attention."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

FLASH = "clara_flash"


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


def register_flash() -> None:
    """Make `FLASH` known to transformers."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(FLASH, flash_or_sdpa)
    # Where a mask is asked for it is the additive one of sdpa; a plain causal pass needs none.
    ALL_MASK_ATTENTION_FUNCTIONS.register(FLASH, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def flash_or_sdpa(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Flash for plain causal passes (passages, questions, prompts), sdpa for ragged decode steps with their mask."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = "flash_attention_2" if attention_mask is None else "sdpa"
    output: tuple[Tensor, Tensor | None] = ALL_ATTENTION_FUNCTIONS[name](
        module, query, key, value, attention_mask, **options
    )
    return output
