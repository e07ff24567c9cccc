"""Every call of an engine on the simulated device: results, launches, waits, devices, freed memory."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from clara_core import ClaraEngine
from clara_core.engine.requests import Limits
from clara_core.model.devices import default_dtype, definite_device
from clara_core.model.forked import ForkedPrompt
from clara_core.model.kernels import PAGE, TorchKernel, torch_kernel
from tests.engines import PASSAGES, Counter, open_engine, wrapped
from tests.gpu.device import STATS
from tests.gpu.install import VARLEN
from tests.tiny import Tiny, build

needs_varlen = pytest.mark.skipif(VARLEN is None, reason="torch has torch.nn.attention.varlen since 2.13")
QUESTIONS = ["Where?", "When was the bridge opened?", "Who sailed to Lisbon?"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(tmp_path_factory.mktemp("gpu"), "mistral", seed=5)


@pytest.fixture
def stats() -> Iterator[type[STATS]]:
    STATS.reset()
    STATS.limit = STATS.fail_at = None
    yield STATS
    STATS.limit = STATS.fail_at = None


@pytest.fixture(
    scope="module",
    params=[(place, graphs) for place in (("cuda:0", "float32"), ("cuda:1", "bfloat16")) for graphs in ("off", "auto")],
    ids=["float32", "float32-graphs", "bfloat16", "bfloat16-graphs"],
)
def engine(tiny: Tiny, request: pytest.FixtureRequest) -> Iterator[ClaraEngine]:
    (device, dtype), graphs = request.param
    engine = open_engine(tiny, device=device, dtype=dtype, cuda_graphs=graphs)
    yield engine
    engine.unload()


def test_the_calls_give_what_the_processor_gives(engine: ClaraEngine, tiny: Tiny) -> None:
    """In float32 with padded rows and copies, in bfloat16 with the kernel over packed rows and pages."""
    exact = engine.dtype == torch.float32
    twin = open_engine(tiny, dtype="float32")
    assert isinstance(engine.load().model.kernel, TorchKernel) is (VARLEN is not None and not exact)
    memories, expected = engine.compress(PASSAGES), twin.compress(PASSAGES)
    tolerance = 1e-4 if exact else 0.15  # of numbers about 1 in size
    for one, other in zip(memories, expected, strict=True):
        assert one.tokens.device.type == "cpu"
        assert one.tokens.dtype is engine.dtype
        torch.testing.assert_close(one.tokens.float(), other.tokens, atol=tolerance, rtol=0)
    scores = engine.score(QUESTIONS, memories)
    torch.testing.assert_close(scores, twin.score(QUESTIONS, expected), atol=tolerance, rtol=0)
    pairs = [(question, slice(0, index)) for index, question in enumerate(QUESTIONS)]
    answers = engine.answer_batch([(question, memories[part]) for question, part in pairs], max_tokens=12)
    if exact:
        assert answers == twin.answer_batch([(question, expected[part]) for question, part in pairs], max_tokens=12)
    assert answers == [engine.answer(question, memories[part], max_tokens=12) for question, part in pairs] or not exact
    assert engine.rank("Where?", memories)[0].score <= 1.01
    assert engine.paraphrase(memories[0], max_tokens=4).completion_tokens <= 4
    options = {"max_tokens": 5, "temperature": 0.8, "top_p": 0.9, "seed": 3}
    drawn = engine.answer("Where?", memories, **options)
    assert drawn.text == "".join(chunk.text for chunk in engine.stream("Where?", memories, **options))

    async def asynchronously() -> None:
        made = await engine.aremember(PASSAGES[:2])
        assert (await engine.aanswer("Where?", made, max_tokens=3)).completion_tokens <= 3

    asyncio.run(asynchronously())


def test_an_answer_crosses_a_page(engine: ClaraEngine, tiny: Tiny) -> None:
    memories = engine.compress(PASSAGES)
    answer = engine.answer("Where?", memories * 4, max_tokens=60)
    assert answer.prompt_tokens + answer.memory_tokens + answer.completion_tokens > PAGE
    if engine.dtype == torch.float32:
        twin = open_engine(tiny, dtype="float32")
        assert answer == twin.answer("Where?", twin.compress(PASSAGES) * 4, max_tokens=60)


def test_quoted_answers_are_those_of_the_processor(engine: ClaraEngine, tiny: Tiny) -> None:
    """The host reads each token before the next step, beside answers whose tokens it reads late."""
    memories = engine.compress(PASSAGES)
    options = {"verbatim": True, "max_tokens": 90}
    quoted = engine.answer_batch([(question, memories) for question in QUESTIONS], **options)
    assert all(any(answer.text in text for text in PASSAGES) for answer in quoted)
    streams = [
        engine.stream(question, memories, verbatim=at != 1, max_tokens=90) for at, question in enumerate(QUESTIONS)
    ]
    said = ["".join(chunk.text for chunk in stream) for stream in streams]
    if engine.dtype == torch.float32:
        assert [said[0], said[2]] == [quoted[0].text, quoted[2].text]
        assert said[1] == engine.answer(QUESTIONS[1], memories, max_tokens=90).text
        twin = open_engine(tiny, dtype="float32")
        again = twin.compress(PASSAGES)
        assert quoted == twin.answer_batch([(question, again) for question in QUESTIONS], **options)


def test_evidence_comes_from_the_heads_of_prompts_that_were_just_answered(engine: ClaraEngine, tiny: Tiny) -> None:
    """The heads are kept while a further step of their rows is still running."""
    memories = engine.compress(PASSAGES)
    pairs, options = [(question, memories) for question in QUESTIONS], {"citations": True, "max_tokens": 12}
    judged: list[ForkedPrompt] = []

    def note(judge: Callable[..., list[torch.Tensor]], prompts: list[ForkedPrompt], tokens: torch.Tensor) -> object:
        judged.extend(prompts)
        return judge(prompts, tokens)

    with wrapped(engine.load().model, "judge", note):
        answers = engine.answer_batch(pairs, **options)
    assert len(judged) >= len(pairs)
    assert all(prompt.kept is not None for prompt in judged), "the head was computed again"
    if engine.dtype == torch.float32:
        twin = open_engine(tiny, dtype="float32")
        expected = twin.answer_batch([(question, twin.compress(PASSAGES)) for question in QUESTIONS], **options)
        for one, other in zip(answers, expected, strict=True):
            assert (one.text, one.judged_tokens) == (other.text, other.judged_tokens)
            assert one.attribution == pytest.approx(other.attribution, abs=1e-3)
    assert engine.stats().kv_used_bytes == 0


def test_launches_and_waits_of_a_step_are_bounded(engine: ClaraEngine, stats) -> None:
    """One wait for each token, for the tokens of the step before; a fixed number of launches in each layer."""
    memories = engine.compress(PASSAGES)
    pairs = [(question, memories[:2]) for question in QUESTIONS]

    def cost(tokens: int) -> tuple[int, int]:
        stats.reset()
        answers = engine.answer_batch(pairs, max_tokens=tokens)
        assert [answer.completion_tokens for answer in answers] == [tokens] * 3
        return sum(stats.launches.values()), sum(stats.syncs.values())

    cost(6)
    (launches, waits), (more, later) = cost(2), cost(6)
    layers = engine.load().model.decoder.config.num_hidden_layers
    assert later - waits <= 4, stats.syncs
    # Without a kernel that reads pages, a layer copies its rows into one tensor.
    by_layer = 20 if engine.load().model.packs else 23
    if engine.arguments.cuda_graphs == "auto":
        by_layer = 0
        assert stats.launches["graph"] >= 5
    assert (more - launches) / 4 <= by_layer * layers + 30, stats.launches
    stats.reset()
    engine.reason(QUESTIONS)
    assert sum(stats.syncs.values()) <= 2, stats.syncs


def test_a_long_prompt_in_pieces_waits_for_nothing(engine: ClaraEngine, tiny: Tiny, stats, monkeypatch) -> None:
    """The answer is the same, and pieces in the middle need no wait: the next one follows immediately."""
    memories = engine.compress(PASSAGES) * 3
    whole = engine.answer("Where?", memories, max_tokens=8)
    monkeypatch.setattr(engine._worker.answers, "limits", Limits(tokens=64, rows=16))
    waits = []
    for count in (1, 3):
        stats.reset()
        with Counter(engine.load().model, "read_on") as pieces:
            engine.answer("Where?", memories[: 6 * count], max_tokens=2)
        waits.append((pieces.calls, sum(stats.syncs.values())))
    (few, before), (many, after) = waits
    assert many > few >= 1
    assert after == before, stats.syncs
    if engine.dtype == torch.float32:
        assert engine.answer("Where?", memories, max_tokens=8) == whole


def test_unloading_gives_all_of_it_back(tiny: Tiny, stats) -> None:
    """The memory is free when the call returns, even if an error that passed through the model is still referenced."""
    engine = open_engine(tiny, device="cuda:1", dtype="float16")
    gc.collect()  # memory of earlier tests must not be freed while this one counts
    before = stats.live
    memories = engine.compress(PASSAGES)
    answer = engine.answer("Where?", memories, max_tokens=3)
    model = engine.load().model
    held = []

    def broken(*_: object, **__: object) -> None:
        raise ArithmeticError("broken")

    model.prefill, model = broken, None  # type: ignore[method-assign]
    with pytest.raises(ArithmeticError) as caught:
        engine.answer("Where?", memories)
    held.append(caught)
    now = engine.stats()
    assert stats.live - before >= now.weights_bytes + now.kv_total_bytes > 0
    assert now.kv_used_bytes == 0
    del now
    engine.unload()
    assert stats.live == before
    assert stats.emptied[-1] == before
    assert engine.answer("Where?", memories, max_tokens=3) == answer
    engine.unload()


def test_one_device_has_one_engine(tiny: Tiny) -> None:
    names = ["auto", "cuda", "cuda:0", torch.device("cuda", 0), torch.device("cuda")]
    assert len({id(open_engine(tiny, device=name)) for name in names}) == 1
    assert open_engine(tiny, device="cuda:1") is not open_engine(tiny, device="cuda")
    assert str(open_engine(tiny, device="cuda").device) == "cuda:0"
    with pytest.raises(ValueError, match=r"device='cuda:7' was asked for, but torch .* sees cuda:0 to cuda:1 here"):
        open_engine(tiny, device="cuda:7")


def test_making_an_engine_leaves_cuda_alone(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server creates engines before it forks its workers; CUDA must not be initialised by then."""

    def touched(*_: object) -> None:
        raise AssertionError("CUDA was initialised")

    for name in ("is_available", "current_device", "get_device_properties", "is_bf16_supported", "mem_get_info"):
        monkeypatch.setattr(torch.cuda, name, touched)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr("clara_core.model.devices._capability_by_driver", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", touched)
    assert open_engine(tiny, device="auto", dtype="auto").dtype is torch.bfloat16


def test_bfloat16_is_not_chosen_where_it_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, dtype in (((7, 5), "float16"), ((7, 0), "float16"), ((8, 6), "bfloat16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=found: found)
        assert default_dtype(definite_device("cuda")) == dtype


def test_after_a_fork_of_a_loaded_engine_there_is_a_clear_error(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from clara_core import EngineClosed
    from clara_core.engine.runtime import _forked

    engine = ClaraEngine(open_engine(tiny, device="cuda:1", dtype="float16").arguments)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    _forked(engine)
    engine.reason(["Where?"])  # created but not loaded before the fork, so it works
    worker = engine._worker
    _forked(engine)
    with pytest.raises(EngineClosed, match="was loaded on cuda:1 before the process forked"):
        engine.reason(["Where?"])
    worker.close()


# -- kernels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_transformers_that_believes_in_flash_attn_changes_nothing(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """transformers would import a kernel for every attention name that it knows."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: found("json" if name == "flash_attn" else name, *rest)
    )
    from transformers import modeling_utils

    believed = [name for name in vars(modeling_utils) if name.startswith("is_flash_attn_")]
    for name in believed:
        monkeypatch.setattr(modeling_utils, name, lambda *_: True)
    assert importlib.util.find_spec("flash_attn")
    assert believed
    engine = ClaraEngine(open_engine(tiny, device=device, dtype="bfloat16").arguments)
    memories = engine.compress(PASSAGES)
    assert engine.answer("Where?", memories, max_tokens=3).completion_tokens <= 3
    engine.unload()


@needs_varlen
def test_an_installed_package_that_does_not_work_breaks_nothing(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """flash-attn 4 has the import name of version 2 without half of its functions; others fail with a new torch."""
    package = tmp_path / "flash_attn"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('undefined symbol: _ZN3c10')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda *_, **__: 1 / 0)
    engine = ClaraEngine(open_engine(tiny, device="cuda:0", dtype="bfloat16").arguments)
    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.attention.varlen.varlen_attn", lambda query: query)
        with pytest.raises(ImportError, match="varlen_attn without block_table"):
            torch_kernel()
    monkeypatch.setattr("clara_core.model.kernels.torch_kernel", lambda: TorchKernel(lambda *_, **__: 1 / 0))
    with caplog.at_level(logging.WARNING):
        memories = engine.compress(PASSAGES)
        assert engine.answer("Where?", memories, max_tokens=3).completion_tokens <= 3
    assert engine.load().model.kernel is None
    assert caplog.text.count("does not work here") == 1
    engine.unload()
    wanted = engine.arguments.model_copy(update={"attn_implementation": "flash_attention_2"})
    with pytest.raises(ValueError, match=r"cannot be used here: flash_kernel: OSError: undefined symbol.*pip install"):
        ClaraEngine(wanted).load()


def test_a_kernel_that_gives_wrong_numbers_is_not_used(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.gpu.install import fake_varlen

    def off(*args: object, **kwargs: object) -> object:
        return fake_varlen(*args, **kwargs) * 1.5

    monkeypatch.setattr("clara_core.model.kernels.torch_kernel", lambda: TorchKernel(off))
    engine = ClaraEngine(open_engine(tiny, device="cuda:0", dtype="bfloat16").arguments)
    assert engine.load().model.kernel is None
    engine.unload()


@needs_varlen
def test_flash_attn_is_called_directly(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine calls its two functions, with the arguments of version 2."""
    package = tmp_path / "flash_attn"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from tests.gpu.install import fake_varlen\n"
        "import torch\n"
        "def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *,\n"
        "                           softmax_scale, causal, window_size):\n"
        "    assert causal and window_size == (-1, -1)\n"
        "    return fake_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale=softmax_scale,\n"
        "                       window_size=(-1, 0), enable_gqa=True)\n"
        "def flash_attn_with_kvcache(q, k_cache, v_cache, *, cache_seqlens, block_table, softmax_scale, causal,\n"
        "                            window_size):\n"
        "    assert q.dim() == 4 and causal and window_size == (-1, -1)\n"
        "    starts = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device) * q.shape[1]\n"
        "    return fake_varlen(q.flatten(0, 1), k_cache, v_cache, starts, None, q.shape[1], 10**6,\n"
        "                       scale=softmax_scale,\n"
        "                       window_size=(-1, 0), enable_gqa=True, seqused_k=cache_seqlens,\n"
        "                       block_table=block_table).view(q.shape)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "flash_attn", raising=False)
    by_name = open_engine(tiny, device="cuda:0", dtype="bfloat16", attn_implementation="flash_attention_2")
    by_torch = open_engine(tiny, device="cuda:0", dtype="bfloat16")
    assert by_name.load().model.kernel.name == "flash-attn"
    memories = by_torch.compress(PASSAGES)
    for one, other in zip(by_name.compress(PASSAGES), memories, strict=True):
        assert torch.equal(one.tokens, other.tokens)
    pairs = [(question, memories) for question in QUESTIONS]
    assert by_name.answer_batch(pairs, max_tokens=8) == by_torch.answer_batch(pairs, max_tokens=8)
    by_name.unload()
    by_torch.unload()
