"""Whether a model fits its device: computed from the file headers, reported clearly, never refused if it fits."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from clara_core import CheckpointError, NotEnoughMemory
from clara_core.engine import capacity
from clara_core.engine.capacity import Demand, Weights, free_bytes, read_headers
from clara_core.model.devices import is_out_of_memory
from clara_core.model.packed_linear import packs
from tests.engines import open_engine
from tests.tiny import FAMILIES, build

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build(tmp_path_factory.mktemp("capacity"))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_counted_is_what_is_loaded(tmp_path, family):
    tiny = build(tmp_path, family)
    weights = read_headers(str(tiny.base), None)
    assert weights is not None
    base = sum(weight.nbytes for weight in tiny.model.parameters())
    assert weights.nbytes("float32", None) == base
    assert weights.nbytes("bfloat16", None) == base // 2
    packed = sum(
        weight.numel() for name, weight in tiny.model.named_parameters() if ".layers." in name and weight.ndim == 2
    )
    assert weights.packable == packed
    assert weights.nbytes("float32", "int8") == base - 3 * packed
    assert weights.dtypes == {"float32"}


def test_shards_are_counted_together_and_what_transformers_passes_over_is_not(tiny, tmp_path):
    whole = read_headers(str(tiny.base), None)
    tiny.model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    (tmp_path / "consolidated.safetensors").write_bytes((tiny.base / "model.safetensors").read_bytes())
    assert read_headers(str(tmp_path), None) == whole
    next(tmp_path.glob("model-*.safetensors")).unlink()
    assert read_headers(str(tmp_path), None) is None


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x05\0\0\0\0\0\0\0hello"])
def test_headers_that_say_nothing_refuse_nothing(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert read_headers(str(tmp_path), None) is None
    assert read_headers("org/not-in-the-cache", str(tmp_path)) is None


def test_too_little_memory_is_said_before_anything_is_read(tiny, monkeypatch):
    from transformers import AutoModelForCausalLM

    free = {"bytes": 0}
    monkeypatch.setattr(capacity, "free_bytes", lambda device: free["bytes"])
    read = []
    original = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: read.append(1) or original(*args, **kwargs)
    )
    engine = open_engine(tiny, dtype="bfloat16")
    adapters = sum(tensor.numel() for state in tiny.adapters.values() for tensor in state.values())
    needed = read_headers(str(tiny.base), None).nbytes("bfloat16", None) + 2 * adapters
    free["bytes"] = needed - 1
    with pytest.raises(NotEnoughMemory, match=rf"needs {needed / 1e6:.2f} MB as bfloat16.*are free.*nf4.* takes"):
        engine.load()
    assert read == []
    free["bytes"] = needed
    assert engine.load().model.dtype is torch.bfloat16  # one byte decides, and a second try computes it again
    engine.unload()


def test_weights_that_are_mapped_as_they_are_need_no_memory(tiny, monkeypatch):
    packed = 4 * read_headers(str(tiny.base), None).packable if packs(torch.float32) else 0
    monkeypatch.setattr(capacity, "free_bytes", lambda device: packed)
    engine = open_engine(tiny)
    engine.unload()
    assert engine.load().model.dtype is torch.float32
    engine.unload()


SIZES = Weights(packable=6_500_000_000, others=500_000_000, dtypes=frozenset({"bfloat16"}))


@pytest.mark.parametrize(
    "dtype, quantization, free, said, unsaid",
    [
        ("float32", None, 20e9, ['quantization="nf4" takes 5.7 GB', 'dtype="bfloat16" takes 14.0 GB'], []),
        ("bfloat16", None, 6e9, ['quantization="nf4" takes 4.7 GB'], ["int8", "dtype="]),
        ("bfloat16", None, 2e9, ['even quantization="nf4" takes 4.7 GB', "a smaller model"], ["int8"]),
        ("bfloat16", "nf4", 2e9, ["4.7 GB as nf4", "a smaller model"], ["even", "takes"]),
    ],
)
def test_only_what_fits_is_advised(monkeypatch, dtype, quantization, free, said, unsaid):
    monkeypatch.setattr(capacity, "free_bytes", lambda device: int(free))
    with pytest.raises(NotEnoughMemory) as caught:
        Demand("org/base", torch.device("cuda"), dtype, quantization, SIZES, 0).check()
    assert all(words in str(caught.value) for words in [*said, f"{free / 1e9:.1f} GB are free"])
    assert not any(words in str(caught.value) for words in unsaid)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 112.00 MiB. GPU 0 has a total capacity of ..."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:116] err == 0. DefaultCPUAllocator: can't allocate memory"),
        OSError(12, "Cannot allocate memory"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_while_loading_is_said_in_the_same_words(tiny, monkeypatch, error):
    """The errors of torch and of the system; `test_memory_of_the_system_that_runs_out` tests that they occur."""
    from transformers import AutoModelForCausalLM

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(NotEnoughMemory, match=r"memory ran out: .* does not fit cpu: it needs .* are free"):
        open_engine(tiny, dtype="bfloat16").load()


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "MPS backend out of memory (MPS allocated: 9.05 GB, other allocations: 1.2 MB, max allowed: 9.07 GB)",
        "Invalid buffer size: 14.50 GB",
        "[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.",
    ],
)
def test_every_spelling_of_out_of_memory_is_known(words):
    assert is_out_of_memory(RuntimeError(words))
    assert not is_out_of_memory(ValueError(words))  # a text of the caller may contain any words
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


def test_other_errors_stay_what_they_are(tiny, monkeypatch):
    from transformers import AutoModelForCausalLM

    def fail(*args, **kwargs):
        raise OSError("no file named model.safetensors")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(CheckpointError, match=r"no file named model.safetensors"):
        open_engine(tiny, dtype="float16").load()


STARVED = """
    import resource, sys
    from pathlib import Path
    from clara_core import ClaraEngine, NotEnoughMemory
    import torch
    torch.zeros(8) @ torch.zeros(8)
    engine = ClaraEngine.from_pretrained(sys.argv[1], base_model=sys.argv[2], dtype="float32", device="cpu")
    engine.plan
    from transformers import MistralForCausalLM
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (30 << 20), resource.RLIM_INFINITY))
    try:
        engine.load()
    except NotEnoughMemory as exc:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(exc)
        engine.load()
        print(engine.answer("Where?", max_tokens=2).completion_tokens)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is one of Linux")
def test_memory_of_the_system_that_runs_out(tmp_path):
    """A process may take only 30 MB more; without this limit the same engine loads."""
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    tiny = build(tmp_path / "tiny")
    large = MistralForCausalLM(MistralConfig(**{**tiny.model.config.to_dict(), "num_hidden_layers": 2}))
    large.resize_token_embeddings(200_000)  # 100 MB
    large.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny.base).save_pretrained(tmp_path / "base")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STARVED), str(tiny.folder), str(tmp_path / "base")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    said, *after = done.stdout.splitlines()
    assert "memory ran out" in said, done.stderr
    assert after == ["2"], done.stderr


def test_the_machine_says_what_is_free():
    free = free_bytes(CPU)
    if Path("/proc/meminfo").exists():
        assert free is not None
        assert 0 < free < 1 << 50
    assert free_bytes(torch.device("meta")) is None


def test_a_container_ends_before_its_machine(tmp_path, monkeypatch):
    """The files of a control group, as a container sees them."""
    for name, text in (
        ("memory.max", "1000000\n"),
        ("memory.current", "400000\n"),
        ("memory.stat", "anon 100000\ninactive_file 200000\nactive_file 50000\n"),
    ):
        (tmp_path / name).write_text(text)
    assert list(capacity._container_bytes(0, tmp_path)) == [850_000]
    assert list(capacity._container_bytes(70_000, tmp_path)) == [920_000]
    (tmp_path / "memory.swap.max").write_text("50000\n")
    (tmp_path / "memory.swap.current").write_text("30000\n")
    assert list(capacity._container_bytes(70_000, tmp_path)) == [870_000]
    (tmp_path / "memory.swap.max").write_text("max\n")
    assert list(capacity._container_bytes(70_000, tmp_path)) == [920_000]
    (tmp_path / "memory.max").write_text("max\n")
    assert list(capacity._container_bytes(0, tmp_path)) == []


def test_progress_is_drawn_where_it_is_asked_for(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("clara_core.engine.loader._LARGE", 0)  # the model counts as large in this test
    tiny = build(tmp_path)
    (tiny.base / "model.safetensors").unlink()
    tiny.model.save_pretrained(tiny.base, max_shard_size=50_000)  # so that transformers 4 shows a bar
    capfd.readouterr()
    for shown in (False, True):
        engine = open_engine(tiny)
        engine.unload()
        engine.load(show_progress=shown)
        engine.unload()
        err = capfd.readouterr().err
        assert ("100%" in err) is shown
