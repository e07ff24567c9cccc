"""The KV cache and its pages, compared with reading the whole sequence again and with transformers."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from clara_core import ClaraEngine
from clara_core.model.attention import Gathered, InPages, Products
from clara_core.model.checkpoint.config import Role
from clara_core.model.decoder import ClaraModel, cache_keyword
from clara_core.model.kernels import PAGE, Kernel
from clara_core.model.kv_cache import KVCache
from clara_core.model.kv_memory import KVMemory, KVRow, KVShape
from tests.engines import open_engine
from tests.reference import PlainKernel, plain_attention
from tests.tiny import build

SHAPE = KVShape(layers=2, kv_heads=2, dim=8, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ClaraEngine:
    return open_engine(build(tmp_path_factory.mktemp("kv"), "mistral", seed=7))


@pytest.fixture(params=[None, PlainKernel()], ids=["padded", "packed"])
def model(engine: ClaraEngine, request: pytest.FixtureRequest) -> Iterator[ClaraModel]:
    model = engine.load().model
    model.kernel = request.param
    yield model
    model.kernel = None


# -- the memory ------------------------------------------------------------------------------------


def test_pages_are_handed_out_once_and_come_back() -> None:
    memory = KVMemory(SHAPE, 5, heads_first=True)
    assert memory.total_bytes == 5 * PAGE * 2 * 2 * 2 * 8 * 4
    assert memory.columns == 5 * PAGE
    one, two = memory.open(1), memory.open(2 * PAGE + 1)
    assert (len(one.pages), len(two.pages)) == (1, 3)
    assert memory.used_bytes == 4 * SHAPE.page_bytes
    assert memory.open(PAGE + 1) is None  # no page is allocated for a row that does not fit
    assert memory.grow(one)
    assert not memory.grow(two)
    assert len({*one.pages, *two.pages}) == 5
    memory.close(two)
    assert memory.used_bytes == 2 * SHAPE.page_bytes
    assert len(memory.open(3 * PAGE).pages) == 3
    assert memory.open(1) is None


def test_what_was_not_finite_is_not_left_to_the_next() -> None:
    memory = KVMemory(SHAPE, 2, heads_first=False)
    spoiled, kept = memory.open(1), memory.open(1)
    for row in (spoiled, kept):
        memory.layer(1)[0][row.pages[0]] = float("nan") if row is spoiled else 3.0
    memory.close(spoiled, wipe=True)
    memory.close(kept)
    assert memory.layer(1)[0].isfinite().all()
    assert (memory.layer(1)[0][1] == 3.0).all()


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 3 * PAGE)), max_size=40))
@settings(deadline=None, max_examples=100)
def test_no_page_is_in_two_rows_and_none_is_lost(moves: list[tuple[bool, int]]) -> None:
    memory = KVMemory(SHAPE, 7, heads_first=True)
    rows: list[KVRow] = []
    for opens, size in moves:
        if opens:
            row = memory.open(size)
            assert (row is None) == (-(-size // PAGE) > 7 - sum(len(one.pages) for one in rows))
            rows += [row] if row else []
        elif rows:
            memory.close(rows.pop(size % len(rows)))
        held = [page for row in rows for page in row.pages]
        assert len(held) == len(set(held))
        assert memory.used_bytes == len(held) * SHAPE.page_bytes


# -- attention over pages --------------------------------------------------------------------------


@pytest.mark.parametrize("heads_first", [True, False])
def test_a_kept_head_is_read_until_its_pages_are_needed(heads_first: bool) -> None:
    memory = KVMemory(SHAPE, 4, heads_first=heads_first)
    row = memory.open(3 * PAGE)
    states = torch.randn(2, SHAPE.kv_heads, 3 * PAGE, SHAPE.dim)
    cache = KVCache(memory, [row])
    cache.begin_prompts([3 * PAGE], packed=True)
    cache.update(states[:1], states[1:], 0)
    head = memory.keep(row, PAGE + 3)
    memory.close(row)
    assert memory.used_bytes == 0
    keys, values = memory.read_head(head)(0)
    torch.testing.assert_close(torch.stack([keys, values]), states[:, :, : PAGE + 3])
    assert memory.open(2 * PAGE) is not None
    assert memory.read_head(head) is not None
    assert memory.grow(KVRow())
    assert memory.read_head(head) is None
    assert memory.open(PAGE) is not None
    assert memory.open(1) is None


def test_a_head_that_nothing_refers_to_is_free() -> None:
    memory = KVMemory(SHAPE, 2, heads_first=True)
    row = memory.open(2 * PAGE)
    first = memory.keep(row, 1)
    del first
    gc.collect()
    second = memory.keep(row, 1)
    assert memory.open(1).pages == [0], "the page of the head that is still needed was taken"
    assert memory.read_head(second) is not None


def test_a_head_that_is_dropped_leaves_zeros() -> None:
    memory = KVMemory(SHAPE, 1, heads_first=True)
    head = memory.keep(memory.open(1), 1)
    memory.both(0)[:] = torch.nan
    memory.drop(head)
    memory.drop(head)
    assert memory.read_head(head) is None
    assert memory.open(PAGE) is not None
    assert memory.open(1) is None
    assert not memory.both(0).any()


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize(
    "pages, lengths",
    [
        ([[0], [1], [2]], [3, PAGE, 17]),  # one page for each row, in order
        ([[4], [1], [3]], [3, PAGE, 17]),  # out of order, with a hole
        ([[0], [9]], [40, 5]),  # far apart
        ([[5, 0, 7], [1], [6, 2]], [2 * PAGE + 9, 4, PAGE + 1]),  # several pages a row, mixed
        ([[9, 8]], [PAGE + 1]),
        ([[3]], [1]),
    ],
)
def test_the_three_readings_are_plain_attention(kv_heads: int, pages: list[list[int]], lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(4)
    keys, values = (torch.randn(10, kv_heads, PAGE, 8, generator=generator) for _ in range(2))
    query = torch.randn(len(pages), 6, 1, 8, generator=generator)
    rows = []
    for row, (own, length) in enumerate(zip(pages, lengths, strict=True)):
        key, value = (torch.cat([store[page].transpose(0, 1) for page in own])[:length] for store in (keys, values))
        rows.append(plain_attention(query[row].transpose(0, 1), key, value, 0.3))
    expected = torch.stack(rows)  # [rows, 1, heads, dim]

    products = Products(pages, lengths, kv_heads).attend(query, keys, values, 0.3, None)
    torch.testing.assert_close(products, expected, atol=1e-5, rtol=0)

    most = max(map(len, pages))
    table = torch.tensor([[*own, *own[-1:] * (most - len(own))] for own in pages])
    for heads_first in (True, False):
        stores = [store if heads_first else store.transpose(1, 2).contiguous() for store in (keys, values)]
        gathered = Gathered(table, torch.tensor(lengths), max(lengths), torch.float32, heads_first)
        read = gathered.attend(query, *map(gathered.copy, stores), 0.3, None)
        torch.testing.assert_close(read, expected, atol=1e-5, rtol=0)

    in_pages = InPages(PlainKernel(), table.int(), torch.tensor(lengths).int(), most * PAGE)
    read = in_pages.attend(query, keys.transpose(1, 2), values.transpose(1, 2), 0.3, None)
    torch.testing.assert_close(read, expected, atol=1e-5, rtol=0)


# -- passes ----------------------------------------------------------------------------------------


def is_greedy(model: ClaraModel, prompt: list[int], written: list[int]) -> bool:
    """Whether each token is the best one after those before it, in one pass without a cache."""
    states = model.hidden_states([prompt + written[:-1]], Role.GENERATOR)[0, len(prompt) - 1 :]
    return bool(model.head(states).argmax(-1).tolist() == written)


class Decoder:
    """Rows that join and leave one KV cache, with prefill and decode step of the model."""

    def __init__(self, model: ClaraModel, memory: KVMemory) -> None:
        self.model, self.memory = model, memory
        self.rows: dict[int, KVRow] = {}
        self.written: dict[int, list[int]] = {}

    def join(self, prompts: dict[int, list[int]]) -> None:
        for name, prompt in prompts.items():
            self.rows[name] = self.memory.open(len(prompt))
        self._take(list(prompts), list(prompts.values()))

    def step(self) -> None:
        for row in self.rows.values():
            assert row.length < row.room or self.memory.grow(row)
        self._take(list(self.rows), None)

    def leave(self, name: int) -> None:
        self.memory.close(self.rows.pop(name))

    def _take(self, names: list[int], prompts: list[list[int]] | None) -> None:
        cache = KVCache(self.memory, [self.rows[name] for name in names])
        if prompts is None:
            logits = self.model.step([self.written[name][-1] for name in names], cache)
        else:
            logits = self.model.prefill(prompts, torch.zeros(0, 0), [[]] * len(prompts), cache)
        cache.commit()
        for name, token in zip(names, logits.argmax(-1).tolist(), strict=True):
            self.written.setdefault(name, []).append(token)


@torch.no_grad()
def test_rows_join_and_leave_and_cross_pages(model: ClaraModel) -> None:
    """Row 0 starts alone, 1 and 2 join later, 0 leaves, 3 gets its pages, and several rows cross a page boundary."""
    rng = random.Random(3)
    prompts = {
        name: [rng.randrange(3, 90) for _ in range(length)] for name, length in enumerate((9, PAGE - 12, PAGE + 30, 1))
    }
    decoder = Decoder(model, model.kv_memory(8))
    decoder.join({0: prompts[0]})
    for _ in range(5):
        decoder.step()
    decoder.join({1: prompts[1], 2: prompts[2]})
    for _ in range(10):
        decoder.step()
    decoder.leave(0)
    decoder.join({3: prompts[3]})
    for _ in range(20):
        decoder.step()
    decoder.leave(2)
    for _ in range(5):
        decoder.step()
    assert decoder.rows[1].length > PAGE
    for name, prompt in prompts.items():
        assert is_greedy(model, prompt, decoder.written[name])
    assert decoder.memory.used_bytes == 3 * decoder.memory.shape.page_bytes


@torch.no_grad()
def test_a_pass_that_is_not_committed_may_run_again(model: ClaraModel) -> None:
    memory = model.kv_memory(2)
    row = memory.open(8)
    for _ in range(2):
        cache = KVCache(memory, [row])
        first = model.prefill([[5, 6, 7]], torch.zeros(0, 0), [[]], cache)
        assert row.length == 0
    cache.commit()
    steps = []
    for _ in range(2):
        cache = KVCache(memory, [row])
        steps.append(model.step([int(first.argmax())], cache))
        assert row.length == 3
    torch.testing.assert_close(*steps)


@torch.no_grad()
def test_packed_texts_are_the_padded_ones(engine: ClaraEngine) -> None:
    """With one role and with several: each text sees only itself, from position 0 on, with its own adapter."""
    model = engine.load().model
    texts = ["a", "The bridge over the river Aln was opened in 1907.", "Short note.", "Who sailed to Lisbon?"]
    ids = engine.tokenizer.encode_passages(texts)
    kernels: list[Kernel | None] = [None, PlainKernel()]
    for roles in (Role.COMPRESSOR, [Role.COMPRESSOR, Role.REASONER, Role.REASONER, Role.COMPRESSOR]):
        made = []
        for model.kernel in kernels:
            made.append(model.encode(ids, roles))
        model.kernel = None
        torch.testing.assert_close(made[0], made[1], atol=1e-5, rtol=0)


# -- what transformers expects ---------------------------------------------------------------------


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
@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize("family", ["mistral", "llama", "qwen2"])
@torch.no_grad()
def test_a_prefill_fills_every_layer_and_no_call_warns(family, attention, tmp_path):
    """If a forward pass ignored the cache, it would stay empty and every answer would be wrong."""
    model = open_engine(build(tmp_path, family, seed=3), attn_implementation=attention).load().model
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14]]
    memory = model.kv_memory(2)
    decoder = Decoder(model, memory)
    decoder.join(dict(enumerate(prompts)))
    for layer in range(model.decoder.config.num_hidden_layers):
        for store in memory.layer(layer):
            assert store[1, :, :6].all()
            assert not store[1, :, 6:].any()
    for _ in range(3):
        decoder.step()
    for name, prompt in enumerate(prompts):
        assert len(decoder.written[name]) == 4
        assert is_greedy(model, prompt, decoder.written[name])


@pytest.mark.parametrize(
    "method", ["crop", "reorder_cache", "reset", "batch_repeat_interleave", "batch_select_indices"]
)
def test_what_would_change_nothing_is_refused(method):
    memory = KVMemory(SHAPE, 1, heads_first=True)
    cache = KVCache(memory, [memory.open(4)])
    with pytest.raises(TypeError, match=method):
        getattr(cache, method)(torch.tensor([0]))
    assert cache.get_max_length() == -1


def test_a_cache_takes_no_keys_before_its_pass_has_begun() -> None:
    memory = KVMemory(SHAPE, 1, heads_first=True)
    keys: Tensor = torch.zeros(1, 2, 4, 8)
    with pytest.raises(RuntimeError, match="call begin_prompts, begin_chunk or begin_step"):
        KVCache(memory, [memory.open(4)]).update(keys, keys, 0)


def test_a_cache_tells_how_many_positions_came_before_the_pass() -> None:
    memory = KVMemory(SHAPE, 3, heads_first=True)
    prompts = KVCache(memory, [memory.open(PAGE), memory.open(9)])
    prompts.begin_prompts([7, 5], packed=False)
    assert prompts.get_seq_length() == 0
    prompts.commit()
    step = KVCache(memory, prompts.rows)
    step.begin_step([1, 2], None, gather=True)
    assert step.get_seq_length() == 7
    chunk = KVCache(memory, prompts.rows[1:])
    chunk.begin_chunk(4, None, gather=True)
    assert chunk.get_seq_length() == 5
