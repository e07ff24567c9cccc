"""The choice of kernels on a processor: by measured time, cached, or named by the user; all results agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from clara_core import ClaraEngine
from clara_core.engine import kernel_choice
from clara_core.engine.options import EngineArguments
from clara_core.model import processor
from clara_core.model.packed_linear import AVAILABLE, PackedLinear
from clara_core.model.processor import Kernels, measure_products, measure_threads
from tests.engines import PASSAGES
from tests.tiny import Tiny, build

needs_onednn = pytest.mark.skipif(not AVAILABLE, reason="this build of PyTorch has no oneDNN")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return build(tmp_path_factory.mktemp("kernels"), "mistral", seed=5)


@pytest.fixture(autouse=True)
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models are measured, too, and the cache of choices is in a folder of the test."""
    monkeypatch.setattr(kernel_choice, "SMALL", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def fresh(tiny: Tiny, **options: str) -> ClaraEngine:
    arguments = EngineArguments(
        model=str(tiny.folder), base_model=str(tiny.base), device="cpu", dtype="float32", **options
    )
    return ClaraEngine(arguments.resolved())


@needs_onednn
@pytest.mark.parametrize(
    "onednn, by_columns, chosen",
    [
        (0.5, 1.0, "packed"),
        (2.0, 1.0, ""),
        (0.97, 0.98, ""),
        (1.0, 0.5, "columns"),
        (0.5, 0.5, "columns"),
        (0.5, 0.7, "packed"),
    ],
)
def test_the_faster_kernel_is_chosen_and_a_tie_needs_no_copy(
    monkeypatch: pytest.MonkeyPatch, onednn: float, by_columns: float, chosen: str
) -> None:
    """Only the clock is replaced: MKL takes 1, the others the given multiples of it."""

    def times(calls, end):
        for call in calls:
            call()
        return [1.0, onednn, by_columns][: len(calls)]

    monkeypatch.setattr(processor, "_times", times)
    layers = [nn.Linear(32, 64, bias=False), nn.Linear(32, 8), nn.Linear(32, 64), nn.Identity()]
    kernels = measure_products(layers, (4, 32))
    both = {(64, 32), (8, 32)}
    assert kernels.packed == (both if chosen == "packed" else set())
    assert kernels.columns == (both if chosen == "columns" else set())
    assert kernels.adapters == (onednn < 0.9)


def test_threads_are_chosen_by_the_faster_step(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [nn.Linear(16, 16)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(processor, "BUDGET", 1e6)  # a busy machine does not end the measurement
    for times, single in (([1, 2, 1, 2, 3, 2], 4), ([2, 1], 0), ([1, 2, 1, 2, 1, 2], 16)):
        clock = iter(times)
        monkeypatch.setattr(processor, "_best", lambda call, end, clock=clock: (call(), next(clock))[1])
        assert measure_threads(layers, torch.float32) == single


def test_a_real_measurement_chooses_among_the_model_s_shapes() -> None:
    layers = [nn.Linear(64, 128, bias=False), nn.Linear(128, 64, bias=False)]
    chosen = measure_products(layers, (16, 64))
    assert chosen.packed is not None
    assert chosen.packed | chosen.columns <= {(128, 64), (64, 128)}
    assert not chosen.packed & chosen.columns
    assert measure_threads(layers, torch.float32) in (0, 1, 4, 16)


def test_a_choice_is_measured_once_and_shown(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Kernels(frozenset(), frozenset({(32, 32)}), adapters=False, single=4)
    asked = []
    monkeypatch.setattr(kernel_choice, "measure_products", lambda *_: asked.append(1) or found)
    monkeypatch.setattr(kernel_choice, "measure_threads", lambda *_: 4)
    first = fresh(tiny)
    assert first.load().model.processor == found
    assert first.stats().kernels == "MKL; by columns: 32x32; one thread up to 4 answers"
    assert fresh(tiny).load().model.processor == found
    assert len(asked) == 1
    monkeypatch.setattr(kernel_choice, "_processor", lambda: "another")
    fresh(tiny).load()
    assert len(asked) == 2  # another processor has its own choice
    monkeypatch.setattr(kernel_choice, "VERSION", kernel_choice.VERSION + 1)
    fresh(tiny).load()
    assert len(asked) == 3  # and so have other kernels
    kernel_choice.cache_file().write_text("{damaged", encoding="utf-8")
    fresh(tiny).load()
    assert len(asked) == 4
    assert len(json.loads(kernel_choice.cache_file().read_text(encoding="utf-8"))) == 1


def test_a_folder_that_cannot_be_written_costs_the_measuring_alone(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "clara-rag").write_text("a file in the way", encoding="utf-8")
    assert fresh(tiny).load().model.processor.packed is not None


@needs_onednn
def test_kernels_that_are_named_are_taken_and_agree(tiny: Tiny) -> None:
    results = {}
    for name, kind in (("mkl", nn.Linear), ("onednn", PackedLinear)):
        engine = fresh(tiny, cpu_kernels=name)
        assert {type(layer.base) for layer in engine.load().model.routed.values()} == {kind}
        memories = engine.compress(PASSAGES)
        results[name] = (memories, engine.answer("Where?", memories[:3], max_tokens=12))
        engine.unload()
    assert not kernel_choice.cache_file().exists()
    assert results["mkl"][1] == results["onednn"][1]
    for one, other in zip(results["mkl"][0], results["onednn"][0], strict=True):
        torch.testing.assert_close(one.tokens, other.tokens, atol=1e-5, rtol=1e-4)
