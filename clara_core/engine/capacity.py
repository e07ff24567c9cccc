"""Memory of a device: whether the weights of a model fit before they are read, and the size of the KV cache.

The memory needed is a lower bound: the weights alone, by the headers of their files. If it or the free memory is
unknown, nothing is refused, and loading fails with the same message if memory runs out.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch

from clara_core.common.errors import ContextOverflow, NotEnoughMemory
from clara_core.engine.requests import GenerateRequest, Limits
from clara_core.model.checkpoint.config import CONFIG_FILE
from clara_core.model.decoder import ClaraModel
from clara_core.model.devices import is_out_of_memory, memory_said, release_memory
from clara_core.model.kernels import PAGE
from clara_core.model.kv_memory import KVMemory
from clara_core.model.packed_linear import packs

log = logging.getLogger(__name__)

_INDEX: Final = "model.safetensors.index.json"
_SINGLE: Final = "model.safetensors"
_LONGEST_HEADER: Final = 100_000_000  # bytes; the limit of the format
# The weights that are loaded; a multimodal model has others.
_OF_THE_DECODER: Final = re.compile(r"model\.(layers\.\d+|embed_tokens|norm)\.|lm_head\.")
_PACKED: Final = re.compile(r"model\.layers\.\d+\..*\.weight")  # those that quantization packs, if they are matrices
_BYTES: Final = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_NAMES: Final = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# nf4: half a byte, and a float32 for each block of 64.
_PACKED_BYTES: Final = {"int8": 1.0, "nf4": 0.5 + 4 / 64}
_CACHE_SHARE: Final = 0.8  # of the free memory of a GPU, after the weights and the activations of one batch


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a decoder as its files describe them."""

    packable: int  # number of elements of the matrices that quantization packs
    others: int  # number of all other elements
    dtypes: frozenset[str]  # types in the files

    def nbytes(self, dtype: str, quantization: str | None) -> int:
        """Bytes on the device."""
        size = _BYTES[dtype]
        return int(self.packable * (_PACKED_BYTES[quantization] if quantization else size) + self.others * size)


def read_headers(base: str, cache_dir: str | None) -> Weights | None:
    """Read the headers of the safetensors files of a base decoder; None if they are missing or of an unknown type.

    Args:
        base: Folder, or Hub id of a model in the local cache.
        cache_dir: Folder of the cache, if not the default.
    """
    try:
        headers = [_header(path) for path in _files(base, cache_dir)]
        config = _find(base, CONFIG_FILE, cache_dir)
        # A tied output matrix is the embedding matrix, whatever the files hold; tied is the default of transformers.
        tied = config is None or json.loads(config.read_text(encoding="utf-8")).get("tie_word_embeddings", True)
    except (OSError, ValueError, KeyError, TypeError) as exc:  # loading the files will raise a clear error
        log.debug("the headers of %s cannot be read: %s", base, exc)
        return None
    packable = others = 0
    dtypes: set[str] = set()
    for name, entry in (item for header in headers for item in header.items()):
        if not _OF_THE_DECODER.match(name) or (tied and name.startswith("lm_head.")):
            continue
        if entry["dtype"] not in _NAMES:
            return None  # quantized already, in another format
        dtypes.add(_NAMES[entry["dtype"]])
        count = prod(entry["shape"])
        if _PACKED.fullmatch(name) and len(entry["shape"]) > 1:
            packable += count
        else:
            others += count
    return Weights(packable, others, frozenset(dtypes)) if dtypes else None


def _files(base: str, cache_dir: str | None) -> list[Path]:
    index = _find(base, _INDEX, cache_dir)
    if index is None:
        single = _find(base, _SINGLE, cache_dir)
        return [] if single is None else [single]
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    found = [path for path in (_find(base, name, cache_dir) for name in names) if path is not None]
    return found if len(found) == len(names) else []


def _find(base: str, name: str, cache_dir: str | None) -> Path | None:
    if Path(base).is_dir():
        path = Path(base) / name
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(base, name, cache_dir=cache_dir)
    return Path(cached) if isinstance(cached, str) else None


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            raise ValueError(f"{path} has no safetensors header")
        header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header


def free_bytes(device: torch.device) -> int | None:
    """Free bytes of a device; None if the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return _host_bytes() if device.type == "cpu" else None


def _host_bytes() -> int | None:
    """Free memory of the machine or of its container, whichever is less, with swap."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        facts = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}
        free = [facts["MemAvailable"] + facts["SwapFree"]]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return min([*free, *_container_bytes(facts["SwapFree"])])


def _container_bytes(swap: int, root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes that each control group (version 2) of this process still allows."""
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").partition("0::")[2].strip().lstrip("/")
    except OSError:
        return
    for group in (root / own, *(root / own).parents):
        if root not in (group, *group.parents):
            return
        try:
            limit = int((group / "memory.max").read_text(encoding="ascii"))  # "max" is none
            used = int((group / "memory.current").read_text(encoding="ascii"))
            stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
            yield limit - used + int(stat["inactive_file"]) + int(stat["active_file"]) + _swap(group, swap)
        except (OSError, ValueError, KeyError):
            continue


def _swap(group: Path, free: int) -> int:
    """Bytes of free swap that a control group may use."""
    try:
        limit = int((group / "memory.swap.max").read_text(encoding="ascii"))
        return min(free, max(0, limit - int((group / "memory.swap.current").read_text(encoding="ascii"))))
    except (OSError, ValueError):  # no such files, or "max"
        return free


@dataclass(frozen=True, slots=True)
class Demand:
    """The memory that a model needs on its device."""

    base: str  # name of the base decoder in messages
    device: torch.device
    dtype: str  # type of the weights that are not packed
    quantization: str | None  # packing of the other weights
    weights: Weights | None  # weights of the base decoder; None if they are not known
    adapters: int  # bytes of the adapters

    @property
    def nbytes(self) -> int | None:
        """Bytes needed, at least; None if the weights are not known."""
        return None if self.weights is None else self.weights.nbytes(self.dtype, self.quantization) + self.adapters

    def check(self) -> None:
        """Check that the model fits, as far as that is known.

        Raises:
            NotEnoughMemory: More is needed than is free.
        """
        if self.weights is None or self.nbytes is None:
            return
        needed = self.nbytes
        if self.device.type == "cpu" and self.quantization is None and self.weights.dtypes == {self.dtype}:
            # These weights are mapped from their files, and the system may drop their pages. Weights that are packed
            # for oneDNN are copies.
            size = _BYTES[self.dtype] if packs(getattr(torch, self.dtype)) else 0
            needed = int(self.weights.packable * size)
        free = free_bytes(self.device)
        if free is not None and needed > free:
            raise NotEnoughMemory(self._message(free))

    def errors(self) -> AbstractContextManager[None]:
        """Turns an out-of-memory error inside the ``with`` block into a `NotEnoughMemory` with the same facts."""
        return memory_said(lambda _: f"memory ran out: {self._message(free_bytes(self.device))}")

    def _message(self, free: int | None) -> str:
        kind = self.quantization or self.dtype
        facts = [] if self.nbytes is None else [f"it needs {_gigabytes(self.nbytes)} as {kind}"]
        facts += [] if free is None else [f"{_gigabytes(free)} are free"]
        message = f"the model on the base {self.base!r} does not fit {self.device}: {', '.join(facts) or 'it is full'}"
        return "; ".join(
            [message, *self._suggestions(free), "free memory there, or choose another device or a smaller model"]
        )

    def _suggestions(self, free: int | None) -> list[str]:
        """Options that take less memory, and how much they take."""
        if self.weights is None or self.nbytes is None or free is None:
            return [] if self.quantization == "nf4" else ['quantization="nf4" takes the least']
        sizes = {f'quantization="{name}"': self.weights.nbytes(self.dtype, name) for name in ("nf4", "int8")}
        sizes['dtype="bfloat16"'] = self.weights.nbytes("bfloat16", self.quantization)
        less = {way: size + self.adapters for way, size in sizes.items() if size + self.adapters < self.nbytes}
        fitting = [f"{way} takes {_gigabytes(size)}" for way, size in less.items() if size <= free]
        return fitting or [f"even {way} takes {_gigabytes(size)}" for way, size in list(less.items())[:1]]


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.2f} MB"


# --- the KV cache ------------------------------------------------------------------------------------------


def allocate_cache(model: ClaraModel, limits: Limits, kv_bytes: int | None, most_pages: int | None) -> KVMemory:
    """Allocate the KV cache; if memory runs out, with half the pages, and so on.

    Args:
        model: The model that uses it.
        limits: Sizes of batches.
        kv_bytes: Most bytes; None: a share of the free memory.
        most_pages: Most pages, after passes have run out of memory; None: no further limit.

    Raises:
        Exception: Not even one page can be allocated.
    """
    shape = model.kv_shape()
    wanted = kv_bytes
    if wanted is None:
        free = cache_source_bytes(shape.device)
        batch = limits.tokens * model.activation_bytes()
        wanted = int(_CACHE_SHARE * max(free - batch, free // 2))
    # All rows together cannot fill more pages than this.
    pages = min(max(wanted // shape.page_bytes, 1), limits.rows * -(-model.context // PAGE))
    pages = min(pages, most_pages or pages)
    while True:
        try:
            return model.kv_memory(pages)
        except Exception as exc:
            if not is_out_of_memory(exc) or pages == 1:
                raise
        log.warning("out of memory with a KV cache of %d bytes: going on with half", pages * shape.page_bytes)
        release_memory()
        pages //= 2


def too_large(request: GenerateRequest, memory: KVMemory) -> ContextOverflow:
    """The error of a request that needs more positions than the whole KV cache has."""
    prompt, limit = len(request.ids), request.sequence.limit
    return ContextOverflow(
        f"the prompt of {prompt} positions and an answer of up to {limit} tokens take {prompt + limit} positions, but "
        f"the KV cache holds {memory.columns} ({memory.total_bytes:,} bytes); lower max_tokens, give fewer documents, "
        "or raise kv_cache_bytes"
    )


def cache_source_bytes(device: torch.device) -> int:
    """Bytes that a KV cache takes its share of: what is free on a GPU, elsewhere a quarter of the machine's memory.

    It initialises CUDA.
    """
    if device.type == "cuda":
        release_memory()  # cached blocks of the allocator count as free
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, ValueError, OSError):  # not available on Windows
        return 2**31
