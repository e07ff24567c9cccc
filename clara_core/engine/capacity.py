"""Whether a model fits the memory of its device: asked before its weights are read, and said when they do not fit.

What is needed is a lower bound: the weights alone, by the headers of their files. Where one of both sides is not known,
nothing is refused, and the device has the last word.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch

from clara_core.checkpoint.config import CONFIG_FILE
from clara_core.common.errors import NotEnoughMemory
from clara_core.model.devices import memory_said
from clara_core.model.packed_linear import packs

log = logging.getLogger(__name__)

_INDEX: Final = "model.safetensors.index.json"
_SINGLE: Final = "model.safetensors"
_LONGEST_HEADER: Final = 100_000_000  # bytes, as the format has it
# Of a decoder that also sees or hears, the rest is not loaded.
_OF_THE_DECODER: Final = re.compile(r"model\.(layers\.\d+|embed_tokens|norm)\.|lm_head\.")
_PACKED: Final = re.compile(r"model\.layers\.\d+\..*\.weight")  # what a quantization packs, where it is a matrix
_BYTES: Final = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_NAMES: Final = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# nf4: half a byte, and a float32 for each block of 64.
_PACKED_BYTES: Final = {"int8": 1.0, "nf4": 0.5 + 4 / 64}


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a decoder as its files describe them.

    Attributes:
        packable: Numbers in the matrices that a quantization packs.
        others: All other numbers.
        dtypes: The types that they are stored in.
    """

    packable: int
    others: int
    dtypes: frozenset[str]

    def nbytes(self, dtype: str, quantization: str | None) -> int:
        """Bytes on the device."""
        size = _BYTES[dtype]
        return int(self.packable * (_PACKED_BYTES[quantization] if quantization else size) + self.others * size)


def read_headers(base: str, cache_dir: str | None) -> Weights | None:
    """What the safetensors files of a base hold, without reading them; None where that is not known.

    Args:
        base: Folder or Hub id; of the Hub what lies in its cache.
        cache_dir: Where that is, if not at its usual place.
    """
    try:
        headers = [_header(path) for path in _files(base, cache_dir)]
        config = _find(base, CONFIG_FILE, cache_dir)
        # A tied output matrix is the input's, whatever the files hold; where nothing is said it is tied.
        tied = config is None or json.loads(config.read_text(encoding="utf-8")).get("tie_word_embeddings", True)
    except (OSError, ValueError, KeyError, TypeError) as exc:  # whoever loads the files says what is wrong with them
        log.debug("the headers of %s cannot be read: %s", base, exc)
        return None
    packable = others = 0
    dtypes: set[str] = set()
    for name, entry in (item for header in headers for item in header.items()):
        if not _OF_THE_DECODER.match(name) or (tied and name.startswith("lm_head.")):
            continue
        if entry["dtype"] not in _NAMES:
            return None  # packed already, in a way of its own
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
    """Bytes that can still be taken on a device; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return _host_bytes() if device.type == "cpu" else None


def _host_bytes() -> int | None:
    """Memory of the machine and of the container, whichever ends first; swap counts."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        facts = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}
        free = [facts["MemAvailable"] + facts["SwapFree"]]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return min([*free, *_container_bytes(facts["SwapFree"])])


def _container_bytes(swap: int, root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What each control group that this process is in still allows (version 2)."""
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
            yield limit - used + int(stat["inactive_file"]) + int(stat["active_file"]) + swap
        except (OSError, ValueError, KeyError):
            continue


@dataclass(frozen=True, slots=True)
class Demand:
    """What a model asks of its device.

    Attributes:
        base: Name of its base in messages.
        device: Where it goes.
        dtype: Type of what is not packed.
        quantization: How the rest is packed.
        weights: Of the base; None where they are not known.
        adapters: Bytes of the adapters on the device.
    """

    base: str
    device: torch.device
    dtype: str
    quantization: str | None
    weights: Weights | None
    adapters: int

    @property
    def nbytes(self) -> int | None:
        """At least so many bytes."""
        return None if self.weights is None else self.weights.nbytes(self.dtype, self.quantization) + self.adapters

    def check(self) -> None:
        """Refuse what cannot fit.

        Raises:
            NotEnoughMemory: More is needed than is free.
        """
        if self.weights is None or self.nbytes is None:
            return
        needed = self.nbytes
        if self.device.type == "cpu" and self.quantization is None and self.weights.dtypes == {self.dtype}:
            # Mapped from the files as they are: the system reads what it needs, and drops it again. What is packed for
            # fast products is a copy.
            size = _BYTES[self.dtype] if packs(getattr(torch, self.dtype)) else 0
            needed = int(self.weights.packable * size)
        free = free_bytes(self.device)
        if free is not None and needed > free:
            raise NotEnoughMemory(self._message(free))

    def errors(self) -> AbstractContextManager[None]:
        """Memory that runs out all the same is said in the same words, as a `NotEnoughMemory`."""
        return memory_said(lambda _: f"memory ran out: {self._message(free_bytes(self.device))}")

    def _message(self, free: int | None) -> str:
        kind = self.quantization or self.dtype
        facts = [] if self.nbytes is None else [f"it needs {_gigabytes(self.nbytes)} as {kind}"]
        facts += [] if free is None else [f"{_gigabytes(free)} are free"]
        said = f"the model on the base {self.base!r} does not fit {self.device}: {', '.join(facts) or 'it is full'}"
        return "; ".join([said, *self._ways(free), "free memory there, or choose another device or a smaller model"])

    def _ways(self, free: int | None) -> list[str]:
        """What would take less, and how much."""
        if self.weights is None or self.nbytes is None or free is None:
            return [] if self.quantization == "nf4" else ['quantization="nf4" takes the least']
        sizes = {f'quantization="{name}"': self.weights.nbytes(self.dtype, name) for name in ("nf4", "int8")}
        sizes['dtype="bfloat16"'] = self.weights.nbytes("bfloat16", self.quantization)
        less = {way: size + self.adapters for way, size in sizes.items() if size + self.adapters < self.nbytes}
        fitting = [f"{way} takes {_gigabytes(size)}" for way, size in less.items() if size <= free]
        return fitting or [f"even {way} takes {_gigabytes(size)}" for way, size in list(less.items())[:1]]


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.2f} MB"
