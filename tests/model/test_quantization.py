"""Quantized bases: the adapters stay exact, the memories stay close."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from clara_core import ClaraEngine
from clara_core.engine.options import EngineArguments

TEXTS = ["Weldenia is a genus of flowering plants from Mexico.", "Hagsatera is a genus of orchids."]


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("quantization, closeness", [("int8", 0.999), ("nf4", 0.9)])
def test_quantized_base_gives_nearly_the_same_memories(
    parity_folder: Path, quantization: str, closeness: float
) -> None:
    checkpoint, base = str(parity_folder / "e2e" / "checkpoint"), str(parity_folder / "e2e" / "base")
    exact = ClaraEngine.from_pretrained(checkpoint, base_model=base, device="cpu").compress(TEXTS)
    engine = ClaraEngine.from_pretrained(checkpoint, base_model=base, device="cpu", quantization=quantization)
    layer = next(iter(engine.load().model.routed.values()))
    assert type(layer.base).__module__.startswith("bitsandbytes")
    assert layer.lora_A.dtype == torch.float32
    memories = engine.compress(TEXTS)
    for memory, wanted in zip(memories, exact, strict=True):
        similarity = torch.cosine_similarity(memory.tokens.flatten().float(), wanted.tokens.flatten(), dim=0)
        assert closeness < float(similarity) < 1.0
    assert engine.answer("To which family does it belong?", memories, max_tokens=4).completion_tokens > 0
    engine.unload()


def test_unknown_quantization_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'int8'"):
        EngineArguments(quantization="in8").resolved()
