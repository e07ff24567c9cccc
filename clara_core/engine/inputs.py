"""Turns the arguments of callers into requests of the worker: checks, windows, prompts."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clara_core.common.errors import CheckpointError, ContextOverflow, WindowOverflow
from clara_core.data.memory import Memory
from clara_core.engine.checks import Message, Overflow, check_messages
from clara_core.engine.logprobs import TokenLog
from clara_core.engine.quoting.learned_hints import LearnedHints
from clara_core.engine.quoting.verbatim import Quotation
from clara_core.engine.requests import EncodeRequest, GenerateRequest
from clara_core.engine.sampling import Sampling, SequenceState
from clara_core.model.chat_format import alternating
from clara_core.model.checkpoint.config import ClaraConfig, Role
from clara_core.model.decoder import ClaraModel
from clara_core.model.sampler import Ends
from clara_core.model.tokenizer import ClaraTokenizer, Windows
from clara_core.retrieval.ranking import window_scores

log = logging.getLogger(__name__)

_ANSWER_SHARE = 4  # at most a fourth of the context is kept free for the answer before a long document is shortened
URGENT_TOKEN_LIMIT = 512  # a compression of no more tokens is queued with the questions instead of behind a corpus


@dataclass(frozen=True, slots=True)
class Documents:
    """A block of tokenized documents for the compressor."""

    texts: list[str]
    spans: list[tuple[tuple[int, int], ...]]  # character spans of each document's windows
    sequences: list[list[int]]  # token ids of all windows, document after document
    overhead: int  # number of ids of a sequence that are not text

    def request(self) -> EncodeRequest:
        """The request that compresses the block."""
        urgent = sum(map(len, self.sequences)) <= URGENT_TOKEN_LIMIT
        return EncodeRequest(self.sequences, Role.COMPRESSOR, urgent=urgent)

    def memories(self, tokens: Tensor, fingerprint: str) -> list[Memory]:
        """The memories, from ``tokens [windows of all documents, n_mem, hidden]``."""
        counts = [len(spans) for spans in self.spans]
        lengths = torch.tensor([len(ids) - self.overhead for ids in self.sequences]).split(counts)
        return [
            # A copy, because a view would keep the tensor of the whole block alive.
            Memory(part.clone(), text, spans, int(length.sum()), fingerprint)
            for part, text, spans, length in zip(tokens.split(counts), self.texts, self.spans, lengths, strict=True)
        ]


def prepare_documents(texts: list[str], tokenizer: ClaraTokenizer, overflow: Overflow) -> Documents:
    """Cut documents into windows and tokenize them.

    Raises:
        WindowOverflow: A text is too long and ``overflow="error"``.
    """
    spans = [_spans(text, tokenizer, overflow) for text in texts]
    pieces = [text[start:end] for text, windows in zip(texts, spans, strict=True) for start, end in windows]
    return Documents(texts, spans, tokenizer.encode_passages(pieces), tokenizer.overhead + tokenizer.config.n_mem)


def _spans(text: str, tokenizer: ClaraTokenizer, overflow: Overflow) -> tuple[tuple[int, int], ...]:
    windows = tokenizer.windows(text, first_only=overflow != "split")
    if windows[-1][1] == len(text) or overflow == "split":
        return tuple(windows)
    limit = tokenizer.config.doc_max_length
    beginning = text[:60] + ("…" if len(text) > 60 else "")
    if overflow == "error":
        raise WindowOverflow(
            f"a text of {len(text)} characters ({tokenizer.count(text)} tokens) does not fit the window of {limit} "
            f"tokens: {beginning!r}; use overflow='split', or split it yourself"
        )
    # Cut at a token instead of a boundary, as the published tokenization does.
    end = tokenizer.truncation(text)
    msg = f"truncated a text of {len(text)} characters to its first {end} (a window of {limit} tokens): {beginning!r}"
    warnings.warn(msg, stacklevel=2)
    log.warning("%s", msg)
    return ((0, end),)


def prepare_questions(questions: list[str], tokenizer: ClaraTokenizer) -> list[list[int]]:
    """Token ids of questions for the query reasoner; one that exceeds the window is truncated with a warning."""
    sequences = tokenizer.encode_passages(questions)
    window = tokenizer.config.doc_max_length
    full = window + 3 + tokenizer.config.n_mem
    for index, (question, ids) in enumerate(zip(questions, sequences, strict=True)):
        if len(ids) == full and (tokens := tokenizer.count(question)) > window:
            msg = f"truncated questions[{index}] of {tokens} tokens to a window of {window} tokens: {question[:60]!r}…"
            warnings.warn(msg, stacklevel=2)
            log.warning("%s", msg)
    return sequences


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation and the request of its first reading."""

    messages: Sequence[Message]
    memories: Sequence[Memory]  # the documents, as given by the caller
    sampling: Sampling
    request: GenerateRequest  # the request of the first reading

    @property
    def question(self) -> str:
        """The last user turn."""
        return alternating(self.messages)[-1]["content"]


def prepare_chat(
    messages: Sequence[Message],
    memories: Sequence[Memory],
    sampling: Sampling,
    *,
    tokenizer: ClaraTokenizer,
    model: ClaraModel,
    reason: Callable[[str], Tensor] | None = None,
    as_text: Collection[int] = (),
) -> GenerateRequest:
    """Make the request for the answer to a conversation over compressed documents.

    If the prompt leaves no room for the answer, long documents are cut to their best windows for the last user turn,
    with a warning; nothing else is shortened.

    `reason` gives memory tokens ``[n_mem, hidden]`` of a question; None without a query reasoner. `as_text` has the
    indexes of the documents to read as text, in their place among the others.

    Raises:
        CheckpointError: The checkpoint was not trained to read text beside memories.
        ContextOverflow: The prompt does not fit; the message has both numbers.
        TypeError: `messages` is not a list of dicts of strings.
        ValueError: A role or an index is unknown, or the last turn is not the user's.
    """
    check_messages(messages)
    turns = alternating(messages)
    if as_text:
        check_as_text(as_text, len(memories), tokenizer.config)
    ids = tokenizer.chat_prompt(turns, _layout(memories, as_text))
    read = memories
    context, most = model.context, tokenizer.config.generation_top_k
    room = min(sampling.max_tokens, context // _ANSWER_SHARE)
    crowded = context - len(ids) < room
    if crowded and reason is not None and any(memory.n_windows > most for memory in memories):
        read = keep_best_windows(reason(turns[-1]["content"]), memories, tokenizer)
        ids = tokenizer.chat_prompt(turns, _layout(read, as_text))
    compressed = [memory for at, memory in enumerate(read) if at not in as_text]
    request = prepare_generation(
        ids, compressed, sampling, tokenizer=tokenizer, model=model, quoted=memories, question=turns[-1]["content"]
    )
    if read is not memories:
        request.windows_left_out = count_windows(memories) - count_windows(read)
        msg = windows_left_out(memories, read)
        warnings.warn(msg, stacklevel=2)
        log.warning("%s", msg)
    return request


def check_as_text(as_text: Collection[int], documents: int, config: ClaraConfig) -> None:
    """Check whether a checkpoint can read some documents as text beside the memories of others.

    Raises:
        CheckpointError: The checkpoint was not trained for it.
        ValueError: An index is out of range.
    """
    if not config.mixed:
        raise CheckpointError(
            "as_text: this checkpoint was not trained to read text beside memories (its config.json does not say "
            '"mixed": true), and reads such prompts worse than either: leave as_text out, use read="text", or train it '
            "with clara train stage1_2 and mixed = 0.5"
        )
    if not set(as_text) <= set(range(documents)):
        raise ValueError(f"as_text must name documents from 0 to {documents - 1}, got {sorted(as_text)}")


def _layout(memories: Sequence[Memory], as_text: Collection[int]) -> Windows:
    if not as_text:
        return count_windows(memories)
    return [
        memory.text[start:end] if at in as_text else None
        for at, memory in enumerate(memories)
        for start, end in memory.spans
    ]


def prepare_generation(
    ids: list[int],
    memories: Sequence[Memory],
    sampling: Sampling,
    *,
    tokenizer: ClaraTokenizer,
    model: ClaraModel,
    quoted: Sequence[Memory] = (),
    question: str = "",
) -> GenerateRequest:
    """Make a request from the ids of a prompt and the memories that fill its slots, in order.

    `quoted` has the documents whose words a verbatim answer may have; without any, it is free. `question` has the words
    that help to find their place, for checkpoints that are better with them.

    Raises:
        ContextOverflow: The prompt does not fit, or the chat template removed memory slots.
    """
    context = model.context
    room = context - len(ids)
    if room < 1:
        raise context_overflow(len(ids), memories, context, tokenizer)
    slots = tokenizer.is_slot(ids)
    tokens = [memory.tokens.flatten(0, 1) for memory in memories]  # [windows * n_mem, hidden] each
    filled = torch.cat(tokens) if tokens else torch.zeros(0, 0)
    if sum(slots) != len(filled):
        msg = f"the chat template kept {sum(slots)} memory slots of {len(filled)}: it alters user messages"
        raise ContextOverflow(msg)
    wanted = tokenizer.config.verbatim if sampling.verbatim is None else sampling.verbatim
    quotation = _quotation(quoted, question, tokenizer) if wanted and quoted else None
    log = None if sampling.recorded is None else TokenLog(tokenizer.token_bytes, sampling.recorded)
    ends = model.ends
    ends = Ends(ends.ids | tokenizer.eos_ids, ends.after)
    return GenerateRequest(
        ids=ids,
        slots=slots,
        memories=filled,
        source_tokens=sum(memory.source_tokens for memory in memories),
        sequence=SequenceState(tokenizer.decode, sampling, ends, room, tokenizer.byte_ids, log, quotation),
        documents=memories,
    )


def _quotation(quoted: Sequence[Memory], question: str, tokenizer: ClaraTokenizer) -> Quotation:
    texts, weight = [memory.text for memory in quoted], tokenizer.config.question_words
    return Quotation(texts, tokenizer, LearnedHints(question, texts, weight) if weight else None)


# --- documents with more windows than fit a prompt ---------------------------------------------------------


def count_windows(memories: Sequence[Memory]) -> int:
    """Number of windows of all documents."""
    return sum(memory.n_windows for memory in memories)


def keep_best_windows(question: Tensor, memories: Sequence[Memory], tokenizer: ClaraTokenizer) -> list[Memory]:
    """Cut each document to its best windows for a question, at most as many as the generator was trained to read.

    The windows of a shortened document are sorted best first, as in training. With the bundled model, 120 questions on
    documents of about 200 windows were answered right 81 times from the five best in this order, 75 times in the order
    of the document, 55 times from the sixteen best, and twice from as many as the context holds.

    ``question [n_mem, hidden]`` has the memory tokens of the query reasoner.
    """
    most = tokenizer.config.generation_top_k
    kept = []
    for memory in memories:
        if memory.n_windows <= most:
            kept.append(memory)
            continue
        [scores] = window_scores(question[None], [memory])  # [1, windows]
        best = scores[0].topk(most).indices.tolist()
        spans = tuple(memory.spans[index] for index in best)
        tokens = sum(tokenizer.count(memory.text[start:end]) for start, end in spans)
        kept.append(replace(memory, tokens=memory.tokens[best], spans=spans, source_tokens=tokens))
    return kept


def windows_left_out(given: Sequence[Memory], kept: Sequence[Memory]) -> str:
    """The warning that names the shortened documents."""
    parts = [
        f"documents[{index}] is read from its best {after.n_windows} of {before.n_windows} windows"
        for index, (before, after) in enumerate(zip(given, kept, strict=True))
        if after.n_windows < before.n_windows
    ]
    return f"the documents do not fit the context: {', '.join(parts)}; split long documents to choose yourself"


def context_overflow(positions: int, memories: Sequence[Memory], context: int, tokenizer: ClaraTokenizer) -> Exception:
    """The error of a prompt of so many positions that does not fit, with advice."""
    windows = count_windows(memories)
    slots = windows * (tokenizer.config.n_mem + tokenizer.config.sep)
    longest = max(range(len(memories)), key=lambda index: memories[index].n_windows, default=None)
    if longest is None or positions - slots >= context:
        advice = "shorten the conversation"
    elif memories[longest].n_windows > tokenizer.config.generation_top_k:
        advice = (
            f"documents[{longest}] alone has {memories[longest].n_windows} windows. Split long documents "
            "(ClaraTextSplitter in LangChain, ClaraNodeParser in LlamaIndex, engine.tokenizer.windows elsewhere) and "
            "give the pieces that answer the question; an engine with a query reasoner chooses its best windows itself"
        )
    else:
        advice = "give fewer documents"
    noun = "document" if len(memories) == 1 else "documents"
    return ContextOverflow(
        f"the prompt takes {positions} positions ({len(memories)} {noun} in {windows} windows), but the context "
        f"holds {context}; {advice}"
    )
