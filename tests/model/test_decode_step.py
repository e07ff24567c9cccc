"""The fused decode step, compared with the decoder's own forward."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from clara_core.model.checkpoint.config import Role
from clara_core.model.decode_step import FusedLinear, fits
from clara_core.model.decoder import ClaraModel
from clara_core.model.int8_linear import Int8Linear
from clara_core.model.kernels import PAGE
from clara_core.model.kv_cache import KVCache
from clara_core.model.lora import RoutedLinear, routed
from clara_core.model.packed_linear import packed
from clara_core.model.processor import Kernels
from tests.engines import open_engine
from tests.reference import PlainKernel
from tests.tiny import FAMILIES, build


def steps(model: ClaraModel, role: Role | None, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of steps over rows of several lengths, one of which crosses a page, and the cache of the last layer."""
    memory = model.kv_memory(6)
    prompts = [[5, 6, 7], [9] * (PAGE - 3), [*range(3, 40)]]
    rows = [memory.open(len(prompt) + count) for prompt in prompts]
    cache = KVCache(memory, rows, role)
    logits = [model.prefill(prompts, torch.zeros(0, 0), [[]] * len(prompts), cache)]
    cache.commit()
    for at in range(count):
        cache = KVCache(memory, rows, role)
        logits.append(model.step([20 + at, 30, 40 - at], cache))
        cache.commit()
    return torch.stack(logits), memory.both(model.kv_shape().layers - 1)


@pytest.mark.parametrize("kernel", [None, PlainKernel()], ids=["products", "pages"])
@pytest.mark.parametrize("kernels", ["mkl", "onednn", "columns"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_step_is_the_decoder_s_own(
    family: str, kernels: str, kernel: PlainKernel | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels == "columns":
        every = frozenset((out, into) for out in range(1, 200) for into in range(1, 200))
        monkeypatch.setattr("clara_core.engine.kernel_choice.PLAIN", Kernels(frozenset(), every, adapters=False))
    tiny = build(tmp_path, family, seed=3)
    model = open_engine(tiny, cpu_kernels="onednn" if kernels == "onednn" else "mkl").load().model
    model.kernel, fused = kernel, model.fused
    assert fused is not None
    for role in (Role.GENERATOR, None):
        model.fused = fused
        fast, written = steps(model, role)
        model.fused = None
        slow, expected = steps(model, role)
        torch.testing.assert_close(fast, slow, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(written, expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_weights_that_are_put_together_are_held_once(tmp_path: Path) -> None:
    model = open_engine(build(tmp_path, "mistral"), cpu_kernels="mkl").load().model
    for block in model.trunk.layers:
        attention = block.self_attn
        query, key, value = (layer.base.weight for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
        storage = query.untyped_storage()
        assert key.untyped_storage().data_ptr() == value.untyped_storage().data_ptr() == storage.data_ptr()
        shrink = 3 * model.config.lora_r * query.shape[1] * query.element_size()
        assert storage.nbytes() == query.nbytes + key.nbytes + value.nbytes + shrink


def test_what_is_built_otherwise_takes_its_own_steps(tmp_path: Path) -> None:
    """A decoder whose rotary positions depend on the length of the prompt cannot use the table."""
    model = open_engine(build(tmp_path, "llama")).load().model
    assert fits(model.trunk, model.routed)
    assert not fits(model.decoder, model.routed)
    without = {name: layer for name, layer in model.routed.items() if not name.endswith("gate_proj")}
    assert not fits(model.trunk, without)
    model.trunk.rotary_emb.rope_type = "dynamic"
    assert not fits(model.trunk, model.routed)


@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize("kernel", [None, PlainKernel()], ids=["copies", "pages"])
@torch.no_grad()
def test_a_prompt_in_pieces_is_the_whole_one(kernel: PlainKernel | None, attention: str, tmp_path: Path) -> None:
    """With a memory token on each side of a cut, pieces of all sizes, and a step after them."""
    model = open_engine(build(tmp_path, "mistral", seed=4), attn_implementation=attention).load().model
    model.kernel = kernel
    ids = [3 + at * 7 % 80 for at in range(PAGE + 44)]
    slots = [at in (5, 39, 40, PAGE, PAGE + 43) for at in range(len(ids))]
    memories = torch.randn(sum(slots), model.hidden, generator=torch.Generator().manual_seed(2))
    memory = model.kv_memory(5)
    whole, pieces = memory.open(len(ids) + 1), memory.open(len(ids) + 1)
    cache = KVCache(memory, [whole])
    expected = [model.prefill([ids], memories, [slots], cache)]
    cache.commit()
    logits, filled = torch.empty(0), 0
    for start, end in itertools.pairwise((0, 40, 41, PAGE - 1, PAGE + 1, len(ids))):
        cache, count = KVCache(memory, [pieces]), sum(slots[start:end])
        logits = model.read_on(ids[start:end], memories[filled : filled + count], slots[start:end], cache)
        cache.commit()
        filled += count
    found = [logits]
    for row, logged in ((whole, expected), (pieces, found)):
        logged.append(model.step([9], KVCache(memory, [row])))
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("biases", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("eight", [(True, True), (True, False)])
def test_layers_of_8_bits_are_what_each_computes_by_itself(biases: tuple[bool, bool], eight: tuple[bool, bool]) -> None:
    """To the last bit, also beside a layer of another kind."""
    generator = torch.Generator().manual_seed(5)
    layers = []
    for out, bias, int8 in zip((48, 32), biases, eight, strict=True):
        plain = nn.Linear(96, out, bias=bias).requires_grad_(False)
        layers.append(RoutedLinear(Int8Linear(plain) if int8 else packed(plain), 4, 2.0, torch.float32))
        for weight in layers[-1].parameters():
            weight.data.normal_(generator=generator)
    x = torch.randn(3, 96, generator=generator)
    with torch.no_grad():
        fused = FusedLinear(layers, Role.GENERATOR)
        assert torch.equal(fused(x, adapted=False), torch.cat([layer.base(x) for layer in layers], dim=1))
        with routed(Role.GENERATOR, 4):
            expected = torch.cat([layer(x[:, None])[:, 0] for layer in layers], dim=1)
        torch.testing.assert_close(fused(x, adapted=True), expected, atol=1e-4, rtol=0)
