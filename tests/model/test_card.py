"""Tests that need a real GPU: kernels against plain attention, and an engine in bfloat16 (`make test-gpu`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from clara_core import ClaraEngine
from clara_core.model.kernels import PAGE, Kernel, find_kernel, flash_kernel, torch_kernel
from tests.engines import PASSAGES, open_engine
from tests.reference import PlainKernel
from tests.tiny import build

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda", 0)
LENGTHS = (1, 300, 17, 64, 5)  # different lengths; one row crosses a page


@pytest.fixture(params=[torch_kernel, flash_kernel], ids=["torch", "flash-attn"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    try:
        kernel: Kernel = request.param()
    except Exception as exc:  # noqa: BLE001 - any error of a missing or broken installation
        pytest.skip(f"not installed here: {exc}")
    return kernel


def close(ours: torch.Tensor, plain: torch.Tensor) -> None:
    """Equal within the precision of bfloat16 for numbers of about 1."""
    torch.testing.assert_close(ours.float().cpu(), plain.float().cpu(), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("heads, kv_heads", [(8, 8), (8, 2), (32, 8)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packed_rows(kernel: Kernel, heads: int, kv_heads: int, window: int | None, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    total = sum(LENGTHS)
    query, key, value = (torch.randn(total, n, 128, device=DEVICE, dtype=dtype) for n in (heads, kv_heads, kv_heads))
    starts = torch.tensor([0, *LENGTHS], device=DEVICE).cumsum(0).int()
    given = {"starts": starts, "longest": max(LENGTHS), "scale": 128**-0.5, "window": window}
    plain = PlainKernel().packed(*(states.float().cpu() for states in (query, key, value)), **given)
    close(kernel.packed(query, key, value, **given), plain)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("heads, kv_heads", [(8, 8), (8, 2), (32, 8)])
def test_rows_in_pages(kernel: Kernel, heads: int, kv_heads: int, window: int | None) -> None:
    torch.manual_seed(2)
    query = torch.randn(len(LENGTHS), heads, 128, device=DEVICE, dtype=torch.bfloat16)
    keys, values = (
        torch.randn(9, PAGE, kv_heads, 128, device=DEVICE, dtype=torch.bfloat16).clamp(-3, 3) for _ in range(2)
    )
    table = torch.tensor([[7, 7], [2, 5], [0, 0], [8, 8], [3, 3]], dtype=torch.int32, device=DEVICE)
    given = {
        "table": table, "lengths": torch.tensor(LENGTHS, dtype=torch.int32, device=DEVICE), "longest": 2 * PAGE,
        "starts": torch.arange(len(LENGTHS) + 1, dtype=torch.int32, device=DEVICE), "queries": 1,
        "scale": 128**-0.5, "window": window,
    }  # fmt: skip
    plain = PlainKernel().paged(*(states.float().cpu() for states in (query, keys, values)), **given)
    close(kernel.paged(query, keys, values, **given), plain)


def test_one_kernel_is_found_on_a_card_that_has_one() -> None:
    if torch.cuda.get_device_capability(DEVICE)[0] < 8:
        pytest.skip("this card is older than the kernels")
    assert find_kernel("auto", DEVICE, torch.bfloat16, heads=32, kv_heads=8, dim=128) is not None


@pytest.fixture(params=["auto", "sdpa"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClaraEngine]:
    tiny = build(tmp_path_factory.mktemp("card"), "mistral", seed=5)
    engine = open_engine(tiny, device="cuda:0", dtype="bfloat16", attn_implementation=request.param)
    yield engine
    engine.unload()


def test_an_engine_gives_what_the_processor_gives(engine: ClaraEngine, tmp_path_factory) -> None:
    twin = open_engine(build(tmp_path_factory.mktemp("twin"), "mistral", seed=5))
    memories, expected = engine.compress(PASSAGES), twin.compress(PASSAGES)
    for one, other in zip(memories, expected, strict=True):
        torch.testing.assert_close(one.tokens.float(), other.tokens, atol=0.15, rtol=0)
    answers = engine.answer_batch([("Where?", memories[:count]) for count in range(7)], max_tokens=300)
    assert all(0 < answer.completion_tokens <= 300 for answer in answers)


def test_unloading_gives_the_memory_back(engine: ClaraEngine) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(DEVICE)
    engine.answer("Where?", engine.compress(PASSAGES), max_tokens=3)
    assert torch.cuda.memory_reserved(DEVICE) > before
    engine.unload()
    assert torch.cuda.memory_reserved(DEVICE) <= before


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_steps_as_graphs_give_what_plain_steps_give(
    dtype: str, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """One answer after the other, so that all passes have the same rows; each crosses a page."""
    tiny = build(tmp_path_factory.mktemp("graphs"), "qwen2", seed=5)  # no answer ends by itself
    answers = []
    for graphs in ("off", "auto"):
        engine = open_engine(tiny, device="cuda:0", dtype=dtype, cuda_graphs=graphs)
        memories = engine.compress(PASSAGES)
        answers.append([engine.answer("Where?", memories[:count], max_tokens=300) for count in (0, 3)])
        sizes = engine._worker.answers.memory.fixed._sizes.values()
        assert any(size.graph is not None for size in sizes) is (graphs == "auto")
        engine.unload()
    assert answers[0] == answers[1]
    assert "could not be captured" not in caplog.text
