"""The key/value cache against what transformers expects of one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clara_core.kv_cache import KVCache
from clara_core.model import cache_keyword
from tests.engines import open_engine
from tests.tiny import build


class _Older(nn.Module):
    def forward(self, inputs_embeds=None, past_key_values=None, **kwargs): ...


class _Newer(nn.Module):
    def forward(self, inputs_embeds=None, cache=None, **kwargs): ...


class _Wrapped(nn.Module):
    def forward(self, *args, **kwargs): ...


@pytest.mark.parametrize(
    "trunk, keyword", [(_Older, "past_key_values"), (_Newer, "cache"), (_Wrapped, "past_key_values")]
)
def test_the_cache_goes_by_the_name_that_the_forward_takes(trunk, keyword):
    assert cache_keyword(trunk()) == keyword


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("family", ["mistral", "llama", "qwen2"])
@torch.no_grad()
def test_a_prefill_fills_every_layer_and_no_call_warns(family, tmp_path):
    """A cache that a forward swallows unused would leave it empty and every answer wrong."""
    model = open_engine(build(tmp_path, family, seed=3)).load().model
    prompt = [5, 6, 7, 8]
    logits, cache = model.prefill([prompt], torch.zeros(0, 0), torch.zeros(1, len(prompt), dtype=torch.bool))
    assert len(cache.keys) == model.decoder.config.num_hidden_layers
    token = logits.argmax(-1)
    stepped = model.step(token, cache)
    whole, _ = model.prefill(
        [[*prompt, int(token)]], torch.zeros(0, 0), torch.zeros(1, len(prompt) + 1, dtype=torch.bool)
    )
    torch.testing.assert_close(stepped, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "method", ["crop", "reorder_cache", "reset", "batch_repeat_interleave", "batch_select_indices"]
)
def test_what_would_change_nothing_is_refused(method):
    cache = KVCache(torch.tensor([4]))
    with pytest.raises(TypeError, match=method):
        getattr(cache, method)(torch.tensor([0]))
    assert cache.get_max_length() == -1
