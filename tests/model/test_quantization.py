"""Quantized base decoders: adapters stay exact, and memories stay close."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from clara_core import ClaraEngine
from clara_core.engine.options import EngineArguments
from clara_core.model.int8_linear import Int8Linear
from tools.pocket_factory.world import ENCYCLOPEDIA

TEXTS = ["Weldenia is a genus of flowering plants from Mexico.", "Hagsatera is a genus of orchids."]


@pytest.mark.parametrize("quantization, closeness", [("int8", 0.9999), ("nf4", 0.9)])
def test_quantized_base_gives_nearly_the_same_memories(
    parity_folder: Path, quantization: str, closeness: float
) -> None:
    if quantization == "nf4" and find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    checkpoint, base = str(parity_folder / "e2e" / "checkpoint"), str(parity_folder / "e2e" / "base")
    exact = ClaraEngine.from_pretrained(checkpoint, base_model=base, device="cpu").compress(TEXTS)
    engine = ClaraEngine.from_pretrained(checkpoint, base_model=base, device="cpu", quantization=quantization)
    layer = next(iter(engine.load().model.routed.values()))
    kind = type(layer.base)
    assert kind is Int8Linear if quantization == "int8" else kind.__module__.startswith("bitsandbytes")
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


def test_int8_on_a_processor_answers_like_the_exact_model_and_takes_less() -> None:
    texts = [*TEXTS, "The lighthouse of Marrow Bay was built in 1871 by Ada Finch."] * 4
    exact = ClaraEngine.from_pretrained(ENCYCLOPEDIA, device="cpu")
    engine = ClaraEngine.from_pretrained(ENCYCLOPEDIA, device="cpu", quantization="int8")
    memories, wanted = engine.compress(texts), exact.compress(texts)
    for memory, other in zip(memories, wanted, strict=True):
        assert float(torch.cosine_similarity(memory.tokens.flatten(), other.tokens.flatten(), dim=0)) > 0.999
    alone = [engine.compress([text])[0] for text in texts[:3]]
    for memory, one in zip(memories, alone, strict=False):
        # The last bit of a float can change a rounding to 8 bits, so a batch is not equal within 1e-5 as in float32.
        torch.testing.assert_close(memory.tokens, one.tokens, atol=1e-3, rtol=1e-3)
    pairs = [(question, wanted[:count]) for count, question in enumerate(("What is it?", "Who built it?", "Where?"), 1)]
    assert engine.answer_batch(pairs, max_tokens=6) == [engine.answer(*pair, max_tokens=6) for pair in pairs]
    assert engine.stats().weights_bytes < 0.6 * exact.stats().weights_bytes
    assert engine.stats().kernels.startswith("FBGEMM, 8 bits")
    engine.unload()


def test_a_processor_without_whole_number_products_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clara_core.model.int8_linear._ENGINE", "another")
    engine = ClaraEngine(EngineArguments(device="cpu", dtype="float32", quantization="int8").resolved())
    with pytest.raises(ValueError, match=r"'int8' cannot be used on this CPU: .*FBGEMM.* Use quantization='nf4'"):
        engine.load()
