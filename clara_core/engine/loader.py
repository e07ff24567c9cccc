"""Loads the model of an engine: from arguments to weights on a device."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from clara_core.common.errors import CheckpointError
from clara_core.engine.capacity import Demand, read_headers
from clara_core.engine.kernel_choice import prepare
from clara_core.engine.options import EngineArguments
from clara_core.model.attention import ATTENTION, register_attention
from clara_core.model.checkpoint.config import ClaraConfig
from clara_core.model.checkpoint.hub import resolve, resolve_base
from clara_core.model.checkpoint.io import Checkpoint, check_vocabulary, read_checkpoint
from clara_core.model.decoder import ClaraModel
from clara_core.model.devices import check_forked, is_out_of_memory
from clara_core.model.fixed_steps import GraphCapture
from clara_core.model.int8_linear import check_int8
from clara_core.model.kernels import find_kernel
from clara_core.model.tokenizer import ClaraTokenizer
from clara_core.model.weights import context_of

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LARGE = 1 << 30  # bytes of weights from which a progress bar is worth drawing
_SAMPLE = 1 << 20  # bytes hashed at both ends of a file of base weights


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything about an engine that is known before its weights are read."""

    folder: Path
    config: ClaraConfig
    base: str  # folder or Hub id of the base decoder
    hidden: int  # width of a memory token
    context: int  # most positions that a prompt and its answer may take together
    tokenizer: ClaraTokenizer  # the base's tokenizer with the memory tokens


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model on its device."""

    model: ClaraModel
    checkpoint: Checkpoint  # its checkpoint, without the tensors, which are in the model
    fingerprint: str  # hash of its weights and rate
    weights_bytes: int  # bytes of weights and adapters on the device


def plan_engine(arguments: EngineArguments) -> Plan:
    """Find the checkpoint, the base decoder and the tokenizer, and download what is missing from the Hub.

    Raises:
        CheckpointError: Something is missing or invalid.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = resolve(
        arguments.model,
        arguments.compression,
        arguments.revision,
        arguments.token,
        arguments.cache_dir,
        arguments.local_files_only,
    )
    config = ClaraConfig.read(folder)
    base = resolve_base(config, folder, arguments.base_model)
    with _base_errors(base, folder):
        base_config = AutoConfig.from_pretrained(base, **arguments.hub())
        tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left", **arguments.hub())
    hidden, context = int(base_config.hidden_size), context_of(base_config)
    return Plan(folder, config, base, hidden, context, ClaraTokenizer(tokenizer, config))


def load_model(arguments: EngineArguments, plan: Plan, *, show_progress: bool = False) -> Loaded:
    """Read the weights, check that they match, and put them on the device.

    Args:
        arguments: Options of the engine.
        plan: Result of `plan_engine`.
        show_progress: Draw a progress bar while a large base decoder is read.

    Raises:
        CheckpointError: Something is missing or does not match.
        NotEnoughMemory: The model does not fit the device.
        RuntimeError: CUDA was initialised before this process was forked.
        ValueError: A kernel or quantization that was asked for cannot be used here.
    """
    check_forked(torch.device(arguments.device))
    checkpoint = read_checkpoint(plan.folder)
    check_vocabulary(checkpoint, len(plan.tokenizer), plan.base)
    demand = _demand(arguments, plan, checkpoint)
    demand.check()
    large = demand.nbytes is None or demand.nbytes >= _LARGE
    with demand.errors(), progress_bar(shown=show_progress and large):
        return _read_model(arguments, plan, checkpoint)


def _demand(arguments: EngineArguments, plan: Plan, checkpoint: Checkpoint) -> Demand:
    numbers = sum(tensor.numel() for state in checkpoint.adapters.values() for tensor in state.values())
    return Demand(
        plan.base,
        torch.device(arguments.device),
        arguments.dtype,
        arguments.quantization,
        read_headers(plan.base, arguments.cache_dir),
        numbers * DTYPES[arguments.dtype].itemsize,
    )


def _read_model(arguments: EngineArguments, plan: Plan, checkpoint: Checkpoint) -> Loaded:
    int8 = arguments.quantization == "int8" and torch.device(arguments.device).type == "cpu"
    if int8:
        check_int8()
    # "eager" stays the implementation of transformers; the others go through our own attention function.
    if arguments.attn_implementation == "eager":
        decoder = load_decoder(arguments, plan, stored=int8)
    else:
        register_attention()
        decoder = load_decoder(arguments, plan, attention=ATTENTION, stored=int8)
    if len(plan.tokenizer) != decoder.get_input_embeddings().num_embeddings:
        decoder.resize_token_embeddings(len(plan.tokenizer), mean_resizing=False)
    if int8:  # these layers decide the type of hidden states and adapters; the others are converted one by one
        for layer in (decoder.get_input_embeddings(), decoder.get_output_embeddings()):
            layer.to(DTYPES[arguments.dtype])
    model = ClaraModel(decoder, plan.config)
    model.load_adapters(checkpoint)
    fingerprint = hashlib.sha256(f"{checkpoint.identity} {base_identity(plan.base, decoder)}".encode()).hexdigest()
    prepare(model, arguments, fingerprint, int8=int8)
    if arguments.attn_implementation in ("auto", "flash_attention_2"):
        shape = model.kv_shape()
        heads = int(decoder.config.num_attention_heads)
        model.kernel = find_kernel(
            arguments.attn_implementation,
            model.device,
            model.dtype,
            heads=heads,
            kv_heads=shape.kv_heads,
            dim=shape.dim,
        )
    if arguments.cuda_graphs == "auto" and model.device.type == "cuda":
        model.capture = GraphCapture(model.device)
    log.info("loaded %s on %s as %s", plan.folder, model.device, model.dtype)
    if plan.config.licence_note is not None:
        log.warning("%s", plan.config.licence_note)
    # The model has copies of the tensors, so the checkpoint drops them.
    return Loaded(
        model,
        replace(checkpoint, adapters={role: {} for role in checkpoint.adapters}, embeddings={}),
        fingerprint,
        model.weights_bytes,
    )


def base_identity(base: str, decoder: Any) -> str:
    """Identity of the weights of a base decoder, without reading all of them.

    It is the Hub id with its commit, or a hash of the names, sizes and both ends of the weight files in a folder.
    """
    commit = getattr(decoder.config, "_commit_hash", None)
    if not os.path.isdir(base):  # noqa: PTH112 - a Hub id is not a path
        return f"{base}@{commit}"
    digest = hashlib.sha256()
    for path in sorted(Path(base).glob("*.safetensors")) or sorted(Path(base).glob("*.bin")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE))
            file.seek(max(0, size - _SAMPLE))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def load_decoder(
    arguments: EngineArguments,
    plan: Plan,
    place: torch.device | None = None,
    attention: str | None = None,
    *,
    stored: bool = False,
) -> Any:
    """Load the base decoder in the dtype and quantization of the arguments, without adapters.

    Args:
        arguments: Options of the engine.
        plan: Result of `plan_engine`.
        place: Device of a decoder that is not quantized; None: the engine's device.
        attention: Name of an attention function registered in transformers; None: that of the arguments.
        stored: Keep the weights as they are in the files: mapped, neither converted nor quantized.

    Raises:
        CheckpointError: The base decoder cannot be loaded.
        ImportError: bitsandbytes is needed and not installed.
    """
    from transformers import AutoModelForCausalLM

    device = torch.device(arguments.device)
    quantized = arguments.quantization is not None and not stored
    options: dict[str, Any] = {"dtype": "auto" if stored else DTYPES[arguments.dtype], **arguments.hub()}
    named = "sdpa" if arguments.attn_implementation == "auto" else arguments.attn_implementation
    options["attn_implementation"] = attention or named
    if quantized:
        options["quantization_config"] = _quantization(arguments)
        options["device_map"] = {"": device}
    with _base_errors(plan.base, plan.folder):
        decoder = AutoModelForCausalLM.from_pretrained(plan.base, **options)
    return decoder if quantized else decoder.to(place or device)


def _quantization(arguments: EngineArguments) -> Any:
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401 - only to check that it is installed
    except ImportError as exc:
        msg = f"quantization={arguments.quantization!r} needs bitsandbytes: pip install 'clara-rag[quantization]'"
        raise ImportError(msg) from exc
    if arguments.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=DTYPES[arguments.dtype]
    )


@contextmanager
def _base_errors(base: str, folder: Path) -> Iterator[None]:
    """Turn errors of transformers into a `CheckpointError` that names the base decoder and the checkpoint."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as exc:
        if is_out_of_memory(exc):
            raise
        first = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise CheckpointError(
            f"the base decoder {base!r} of the checkpoint in {folder} could not be loaded: {first}. Check the name, "
            "the network or the access token, or give another with base_model="
        ) from exc


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[None]:
    """Show or hide the progress bar that transformers draws while it loads weights."""
    from transformers.utils import logging as bars

    def switch(on: bool) -> None:
        (bars.enable_progress_bar if on else bars.disable_progress_bar)()

    before = bars.is_progress_bar_enabled()
    switch(shown)
    try:
        yield
    finally:
        switch(before)
