"""The format of answers, errors and tensors between client and server, used by both sides.

Tensors are sent as safetensors only, and the reader checks their names, types, shapes and values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Final

from clara_core.common.errors import (
    ClaraError,
    ContextOverflow,
    EngineClosed,
    FingerprintMismatch,
    NotEnoughMemory,
    RoleError,
    ServerError,
    ServerOverloaded,
    StoreError,
    UnknownOption,
    WindowOverflow,
)
from clara_core.common.surrogates import replace_surrogates
from clara_core.engine.evidence import Attribution, Checks, Citation
from clara_core.engine.logprobs import TokenLogprob, logprobs_account
from clara_core.engine.sampling import Answer

if TYPE_CHECKING:
    from torch import Tensor

    from clara_core.data.memory import Memory
    from clara_core.engine.fidelity import Fidelity

TENSORS: Final = "application/vnd.safetensors"
FINGERPRINT: Final = "x-clara-fingerprint"
REQUEST_ID: Final = "x-request-id"

_HEADER_BYTES: Final = 1 << 16

CODES: Final[Mapping[str, tuple[int, type[Exception]]]] = {
    "invalid_request": (400, ValueError),
    "unknown_option": (400, UnknownOption),
    "context_length_exceeded": (400, ContextOverflow),
    "window_overflow": (400, WindowOverflow),
    "unsupported_role": (400, RoleError),
    "invalid_api_key": (401, ServerError),
    "forbidden": (403, ServerError),
    "not_found": (404, ServerError),
    "model_not_found": (404, ServerError),
    "store_not_found": (404, StoreError),
    "document_not_found": (404, KeyError),
    "method_not_allowed": (405, ServerError),
    "fingerprint_mismatch": (409, FingerprintMismatch),
    "body_too_large": (413, ServerError),
    "unsupported_media_type": (415, ServerError),
    "internal": (500, ServerError),
    "store_error": (500, StoreError),
    "not_implemented": (501, ServerError),
    "overloaded": (503, ServerOverloaded),
    "loading": (503, ServerOverloaded),
    "draining": (503, ServerOverloaded),
    "engine_unavailable": (503, EngineClosed),
    "out_of_memory": (503, NotEnoughMemory),
    "timeout": (504, ServerError),
}
"""For each error code the HTTP status that the server sends and the exception that the client raises."""


def code_of(exc: BaseException) -> str:
    """The error code of an exception; ``internal`` for an unexpected one."""
    if isinstance(exc, ClaraError):
        # Checked first, because UnknownOption is a TypeError, too.
        # A store that is not there is refused by the server itself: a fault of a store is never that.
        codes = (code for code, (_, kind) in CODES.items() if type(exc) is kind and code != "store_not_found")
        return next(codes, "internal")
    return "invalid_request" if isinstance(exc, ValueError | TypeError) else "internal"


def answer_to_wire(answer: Answer) -> dict[str, Any]:
    """An answer as JSON."""
    return {**asdict(answer), "logprobs": logprobs_to_wire(answer.logprobs)}


def answer_from_wire(data: Mapping[str, Any]) -> Answer:
    """Parse the result of `answer_to_wire`; unknown fields, which a newer server may send, are ignored.

    Raises:
        ServerError: It is not an answer.
    """
    with _parsing("answer", data):
        known = {each.name: data[each.name] for each in fields(Answer) if each.name in data}
        known["logprobs"] = logprobs_from_wire(data.get("logprobs"))
        if (citations := data.get("citations")) is not None:
            known["citations"] = _citations(citations)
        if (attribution := data.get("attribution")) is not None:
            known["attribution"] = tuple(map(float, attribution))
        if (checks := data.get("checks")) is not None:
            known["checks"] = Checks(**checks)
        return Answer(**known)


def attribution_from_wire(data: Mapping[str, Any]) -> Attribution:
    """Parse an attribution.

    Raises:
        ServerError: A field is missing or invalid.
    """
    with _parsing("attribution", data):
        scores = tuple(map(float, data["scores"]))
        return Attribution(**{**data, "scores": scores, "citations": _citations(data["citations"])})


def fidelity_from_wire(data: Mapping[str, Any]) -> Fidelity:
    """Parse a fidelity.

    Raises:
        ServerError: A field is missing or invalid.
    """
    from clara_core.engine.fidelity import Fidelity, WeakSpan

    with _parsing("fidelity", data):
        spans = tuple(WeakSpan(**each) for each in data["spans"])
        return Fidelity(tuple(map(float, data["windows"])), float(data["loss"]), spans)


@contextmanager
def _parsing(what: str, data: object) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError) as exc:
        raise ServerError(f"the server sent an invalid {what}: {data!r:.100}") from exc


def _citations(data: Sequence[Mapping[str, Any]]) -> tuple[Citation, ...]:
    return tuple(Citation(**each) for each in data)


def logprobs_to_wire(logprobs: Sequence[TokenLogprob] | None) -> list[dict[str, Any]] | None:
    """Log-probabilities in the shape of OpenAI's chat completions."""
    return None if logprobs is None else logprobs_account(logprobs)["content"]


def logprobs_from_wire(data: Sequence[Mapping[str, Any]] | None) -> tuple[TokenLogprob, ...] | None:
    """Parse the result of `logprobs_to_wire`."""
    return None if data is None else tuple(map(_logprob_from_wire, data))


def _logprob_from_wire(data: Mapping[str, Any]) -> TokenLogprob:
    top = logprobs_from_wire(data.get("top_logprobs")) or ()
    return TokenLogprob(str(data["token"]), float(data["logprob"]), bytes(data["bytes"]), top)


def json_to_wire(payload: Mapping[str, Any]) -> bytes:
    """A payload as JSON; numbers may be those of numpy, and lone surrogates become U+FFFD."""
    body = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_number)
    try:
        return body.encode()
    except UnicodeEncodeError:
        return replace_surrogates(body).encode()  # the tokenizer replaces them in the same way


def _number(value: object) -> int | float:
    """Convert a number, such as one of numpy, to a JSON number."""
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"a {type(value).__name__} cannot be sent to a server: {value!r:.60}")


def json_from_wire(reply: bytes) -> Any:
    """Parse JSON.

    Raises:
        ServerError: It is not JSON.
    """
    try:
        return json.loads(reply)
    except (ValueError, RecursionError) as exc:
        raise ServerError(f"the server sent invalid JSON: {reply[:100]!r}") from exc


# --- tensors ---------------------------------------------------------------------------------------------


def memories_to_wire(memories: Sequence[Memory], shape: tuple[int, int], dtype: Any) -> bytes:
    """Memories as safetensors: ``tokens [W, n_mem, hidden]``, ``spans [W, 2]``, ``windows [M]``, ``source_tokens [M]``.

    Args:
        memories: Any number.
        shape: ``(n_mem, hidden)``, used if there are no memories.
        dtype: Type of the tokens.
    """
    import torch
    from safetensors.torch import save

    tokens = [memory.tokens.to(dtype) for memory in memories]
    spans = [span for memory in memories for span in memory.spans]
    return bytes(
        save(
            {
                "tokens": torch.cat(tokens) if tokens else torch.zeros(0, *shape, dtype=dtype),
                "spans": torch.tensor(spans, dtype=torch.int64).reshape(-1, 2),
                "windows": torch.tensor([memory.n_windows for memory in memories], dtype=torch.int64),
                "source_tokens": torch.tensor([memory.source_tokens for memory in memories], dtype=torch.int64),
            }
        )
    )


def memories_from_wire(body: bytes, texts: Sequence[str], shape: tuple[int, int], fingerprint: str) -> list[Memory]:
    """Parse the result of `memories_to_wire` for these texts.

    Raises:
        ServerError: The body is invalid, or does not match the texts or the shape.
    """
    from clara_core.data.memory import Memory

    found = tensors_from_wire(body, {"tokens": 3, "spans": 2, "windows": 1, "source_tokens": 1})
    tokens, spans = found["tokens"], found["spans"].tolist()
    counts, sources = found["windows"].tolist(), found["source_tokens"].tolist()
    whole = len(counts) == len(sources) == len(texts) and all(count > 0 for count in counts)
    if not whole or sum(counts) != len(tokens) or len(spans) != len(tokens) or tuple(tokens.shape[1:]) != shape:
        raise ServerError(
            f"the server sent tokens of the shape {list(tokens.shape)} in {len(counts)} documents; asked for "
            f"{len(texts)} documents of windows of {list(shape)}"
        )
    memories, start = [], 0
    for text, count, source in zip(texts, counts, sources, strict=True):
        own = tuple((int(begin), int(end)) for begin, end in spans[start : start + count])
        if not all(0 <= begin <= end <= len(text) for begin, end in own):
            raise ServerError(f"the server sent spans {own!r:.60} of a text of {len(text)} characters")
        memories.append(Memory(tokens[start : start + count].clone(), text, own, source, fingerprint))
        start += count
    return memories


def tensor_to_wire(tokens: Tensor) -> bytes:
    """One tensor as safetensors, under the name ``tokens``."""
    from safetensors.torch import save

    return bytes(save({"tokens": tokens.contiguous()}))


def tensors_from_wire(body: bytes, ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """Parse safetensors: ``tokens`` must be finite floats, all others int64.

    Raises:
        ServerError: Names, types, shapes or sizes are not as expected.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    length = int.from_bytes(body[:8], "little")
    if length > _HEADER_BYTES:
        raise ServerError(f"the server sent tensors with a header of {length} bytes; at most {_HEADER_BYTES} are read")
    try:
        found = load(body)  # it checks that the tensors fill the body without gaps and overlaps
    except (SafetensorError, KeyError) as exc:  # a KeyError is a type that torch does not have
        raise ServerError(f"the server sent invalid tensors: {type(exc).__name__}: {exc}") from exc
    if found.keys() != ranks.keys():
        raise ServerError(f"the server sent the tensors {sorted(found)!r:.100}; expected {sorted(ranks)}")
    floats = (torch.float32, torch.bfloat16, torch.float16)
    for name, tensor in found.items():
        if tensor.dtype not in (floats if name == "tokens" else (torch.int64,)) or tensor.ndim != ranks[name]:
            raise ServerError(f"the server sent {name} as {tensor.dtype} {list(tensor.shape)!r:.60}")
    if not bool(found["tokens"].isfinite().all()):
        raise ServerError("the server sent tokens that are NaN or infinite")
    return found
