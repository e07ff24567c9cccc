"""Text to token ids and back: memory-token vocabulary, passages, prompts, windows of a long text.

Text from outside is data. If it contains the characters of a special token (``<MEM0>``, ``</s>``, …), these are encoded
as plain text; all other ids are exactly those of the published tokenization.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from clara_core.common.errors import CheckpointError
from clara_core.common.surrogates import replace_surrogates
from clara_core.model.chat_format import merge_turns
from clara_core.model.checkpoint.config import ClaraConfig
from clara_core.model.token_bytes import TokenBytes

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerFast

ANSWER_SYSTEM = (
    "You are a helpful assistant. Your task is to extract relevant information from provided documents and to answer "
    "to questions as briefly as possible."
)
PARAPHRASE_SYSTEM = (
    "You are a helpful assistant. Your task is follow the instructions to paraphrase the background information."
)
PARAPHRASE_INSTRUCTION = "Background: {docs} means the same as"

_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*\s+|\n\s*\n")  # noqa: RUF001 - full-width stops are meant
_SPACE = re.compile(r"\s+")
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_CHARS_PER_TOKEN = 8  # a long text is encoded in pieces of window * this many characters
_WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_EDGES = 4  # a text alone and the same text between BOS and EOS may differ by so many tokens


Windows: TypeAlias = int | Sequence[str | None]
"""The number of memory windows; or one entry a window: None for its memory, or the text to read in its place."""


@dataclass
class Shield:
    """Replaces special tokens in text from outside, so that the text can be inserted into trusted markup.

    Each occurrence becomes a placeholder with a random nonce, and `restore` puts the characters back after the markup
    has been split at its own special tokens.

    Attributes:
        pattern: Matches the special tokens.
        nonce: Random part of the placeholders.
        taken: The replaced characters, in order.
    """

    pattern: re.Pattern[str]
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    taken: list[str] = field(default_factory=list)

    def __call__(self, text: str) -> str:
        """The text with placeholders for special tokens and U+FFFD for lone surrogates."""
        return self.pattern.sub(self._take, replace_surrogates(text))

    def restore(self, text: str) -> str:
        """Put the replaced characters back."""
        return re.sub(rf"\ue000{self.nonce}(\d+)\ue001", lambda match: self.taken[int(match[1])], text)

    def _take(self, match: re.Match[str]) -> str:
        self.taken.append(match[0])
        return f"\ue000{self.nonce}{len(self.taken) - 1}\ue001"


class ClaraTokenizer:
    """The base's fast tokenizer with the memory tokens of a checkpoint.

    Args:
        tokenizer: The base's tokenizer; the added tokens are appended here, in the order of the releases.
        config: Config of the checkpoint.

    Raises:
        CheckpointError: The tokenizer is not a fast one, or has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: ClaraConfig) -> None:
        from tokenizers import AddedToken, Tokenizer

        if not getattr(tokenizer, "is_fast", False):
            msg = f"{tokenizer.name_or_path}: the base needs a fast tokenizer, got {type(tokenizer).__name__}"
            raise CheckpointError(msg)
        if tokenizer.chat_template is None:
            msg = f"{tokenizer.name_or_path}: the base has no chat template; use an instruction-tuned base"
            raise CheckpointError(msg)
        self.config = config
        added = [AddedToken(token, special=True, normalized=False) for token in config.added_tokens]
        tokenizer.add_tokens(added, special_tokens=True)
        self._tokenizer = tokenizer
        self._bos = tokenizer.bos_token or ""
        self._eos = tokenizer.eos_token or ""
        # A private copy, because calls of the wrapper set truncation and padding on a shared object: not thread-safe.
        self._trusted: Tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._trusted.no_padding()
        self._trusted.no_truncation()
        known = tokenizer.added_tokens_decoder
        specials = {token.content for token in known.values() if token.special}
        self._pattern = re.compile("|".join(re.escape(s) for s in sorted(specials, key=len, reverse=True)))
        self._strips = {token.content: (token.lstrip, token.rstrip) for token in known.values()}
        self._plain, self._edge = self._without_specials(specials)
        self.memory_ids: list[int] = [self.token_id(token) for token in config.mem_tokens]
        self.slots = "".join(config.mem_tokens) + ("<SEP>" if config.sep else "")
        self._takes_system = self._template_takes_system()
        vocabulary = self._trusted.get_vocab(with_added_tokens=True)
        # Tokens of single bytes, for characters without a token; a run of them can be decoded once it has ended.
        self.byte_ids = frozenset(index for token, index in vocabulary.items() if _BYTE_TOKEN.fullmatch(token))
        special = frozenset(index for index, token in known.items() if token.special)
        self.token_bytes = TokenBytes(self._trusted, special)

    # --- vocabulary --------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._tokenizer)

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        return frozenset() if self._tokenizer.eos_token_id is None else frozenset({self._tokenizer.eos_token_id})

    def token_id(self, token: str) -> int:
        """Id of a token.

        Raises:
            CheckpointError: The tokenizer does not have it.
        """
        found = self._trusted.token_to_id(token)
        if found is None:
            raise CheckpointError(f"the tokenizer has no token {token!r}")
        return int(found)

    def _without_specials(self, specials: set[str]) -> tuple[Tokenizer, str]:
        """A copy of the tokenizer without special tokens, and the name of a private one that it has.

        Text next to a special token may be encoded in another way than text at the start of a string, for example
        without a leading space, so plain runs are encoded next to the private token if the markup has a special one.
        """
        from tokenizers import AddedToken, Tokenizer

        layout = json.loads(self._trusted.to_str())
        vocabulary = self._trusted.get_vocab(with_added_tokens=False)
        nonce = secrets.token_hex(8)
        kept = []
        for index, token in enumerate(layout["added_tokens"]):
            if token["content"] not in specials:
                kept.append(token)
            elif token["content"] not in vocabulary:
                # Renamed instead of removed, because the ids of added tokens follow from their order.
                kept.append({**token, "content": f"\ue000{nonce}{index}\ue001"})
        layout["added_tokens"] = kept
        layout["post_processor"] = None
        plain = Tokenizer.from_str(json.dumps(layout))
        edge = f"\ue000{nonce}|\ue001"
        plain.add_special_tokens([AddedToken(edge, special=True, normalized=False)])
        return plain, edge

    # --- passages and questions --------------------------------------------------------------------------

    def encode_passages(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of passages or questions for the compressor and the query reasoner, without padding.

        They are ``<ENC>`` + BOS + text + EOS, truncated on the right to ``doc_max_length + 3`` ids, then the memory
        token ids. A base without BOS (Qwen) gets none.
        """
        limit = self.config.doc_max_length + 3
        return [ids[:limit] + self.memory_ids for ids in self._encode_enclosed(texts)]

    def count(self, text: str) -> int:
        """Number of tokens that the text takes in the compressor's window."""
        return len(self._encode_enclosed([text])[0]) - self.overhead

    def windows(self, text: str, *, first_only: bool = False, reserve: int = 0) -> list[tuple[int, int]]:
        """Cut a text into spans of at most `doc_max_length` tokens, at sentence ends or, if there are none, at spaces.

        Args:
            text: Any text.
            first_only: Stop after the first window.
            reserve: Tokens of each window to leave free, for example for a heading before each span.

        Returns:
            list: Character spans ``(start, end)``, in order, that cover the text without gap or overlap.

        Raises:
            ValueError: `reserve` is negative, or leaves no room in a window.
        """
        window = self.config.doc_max_length - reserve
        if not 1 <= window <= self.config.doc_max_length:
            limit = self.config.doc_max_length - 1
            raise ValueError(f"reserve must be between 0 and {limit}, which leaves a token of a window, got {reserve}")
        if len(text) <= window * _CHARS_PER_TOKEN and self.count(text) <= window:
            return [(0, len(text))]
        spans = [(0, self._window_end(text, 0, window))]
        while spans[-1][1] < len(text) and not first_only:
            start = spans[-1][1]
            spans.append((start, self._window_end(text, start, window)))
        return spans

    def truncation(self, text: str) -> int:
        """Number of characters that the published tokenization keeps of a text that is too long."""
        kept = self.config.doc_max_length + 3 - (1 + bool(self._bos))  # EOS is truncated before the text
        _, offsets = self._ahead(text, 0, kept)
        return offsets[min(kept, len(offsets)) - 1][1]

    def _window_end(self, text: str, start: int, window: int) -> int:
        """End of the window of at most `window` tokens that begins at character `start`."""
        piece, offsets = self._ahead(text, start, window)
        if start + len(piece) == len(text) and len(offsets) <= window + _EDGES and self.count(piece) <= window:
            return len(text)
        return start + self._longest_prefix(piece, offsets, window)

    def _ahead(self, text: str, start: int, tokens: int) -> tuple[str, list[tuple[int, int]]]:
        """A piece from `start` on with more than `tokens` tokens, or the rest; with the span of each token."""
        reach = tokens * _CHARS_PER_TOKEN
        while True:
            piece = text[start : start + reach]
            encoding = self._plain.encode(replace_surrogates(piece), add_special_tokens=False)
            if start + reach >= len(text) or len(encoding.ids) > tokens + _EDGES:
                return piece, encoding.offsets
            reach *= 2  # tokens may be long, such as a run of spaces

    def _longest_prefix(self, piece: str, offsets: list[tuple[int, int]], window: int) -> int:
        """Number of characters of `piece` that fit the window and end at the best boundary."""
        end = len(piece) if len(offsets) <= window else offsets[window - 1][1]
        while True:
            end = _last_boundary(piece, end) if end < len(piece) else end
            excess = self.count(piece[:end]) - window
            if excess <= 0 or end <= 1:
                return max(end, 1)
            end = max(end - excess, 1)

    @property
    def overhead(self) -> int:
        """Number of ids around a passage: ``<ENC>``, BOS, EOS."""
        return 1 + bool(self._bos) + bool(self._eos)

    def _encode_enclosed(self, texts: Sequence[str]) -> list[list[int]]:
        head, tail = "<ENC>" + self._bos, self._eos
        texts = [replace_surrogates(text) for text in texts]
        markup = [head + text + tail for text in texts]
        spelling = [index for index, text in enumerate(texts) if self._pattern.search(text)]
        encodings: list[Encoding] = self._trusted.encode_batch(markup, add_special_tokens=False)
        ids = [list(encoding.ids) for encoding in encodings]
        for index in spelling:
            shield = Shield(self._pattern)
            ids[index] = self._encode_markup(head + shield(texts[index]) + tail, shield)
        return ids

    # --- prompts -----------------------------------------------------------------------------------------

    def answer_prompt(self, question: str, n_windows: int) -> list[int]:
        """Ids of the generator's prompt for a question over `n_windows` memory windows."""
        return self.chat_prompt([{"role": "user", "content": question}], n_windows)

    def paraphrase_prompt(self, instruction: str, n_windows: int) -> list[int]:
        """Ids of the prompt that asks to repeat a document.

        Raises:
            ValueError: The instruction lacks ``{docs}``, the place of the document.
        """
        if "{docs}" not in instruction:
            raise ValueError(f"the instruction must contain {{docs}} in the place of the document, got {instruction!r}")
        shield = Shield(self._pattern)
        before, _, after = instruction.partition("{docs}")
        user = shield(before) + self.slots * n_windows + shield(after)
        return self._encode_chat([_turn("system", PARAPHRASE_SYSTEM), _turn("user", user)], shield)

    def chat_prompt(self, messages: Sequence[dict[str, str]], n_windows: Windows) -> list[int]:
        """Ids of a conversation whose last user turn reads `n_windows` windows, or none.

        Turns are merged first (`merge_turns`). The memory slots are inserted into the last user turn, in the form that
        the checkpoints were trained on. A window to read as text becomes ``text<SEP>`` in the place of its slots. With
        windows and without a system message, the published system message is used.

        Raises:
            ValueError: The chat template refuses the conversation.
        """
        return self._chat_turns(messages, n_windows, Shield(self._pattern))[0]

    def _chat_turns(
        self, messages: Sequence[dict[str, str]], n_windows: Windows, shield: Shield
    ) -> tuple[list[int], list[dict[str, str]]]:
        """Ids of a conversation, and its turns with the memory slots inserted."""
        turns = [_turn(turn["role"], shield(turn["content"])) for turn in merge_turns(messages)]
        if n_windows:
            if turns[0]["role"] != "system":
                turns.insert(0, _turn("system", ANSWER_SYSTEM))
            last = max(index for index, turn in enumerate(turns) if turn["role"] == "user")
            content = f"Background:\n{self._background(n_windows, shield)}\n\nQuestion:{turns[last]['content']}"
            turns[last] = _turn("user", content)
        return self._encode_chat(turns, shield), turns

    def _background(self, windows: Windows, shield: Shield) -> str:
        """The markup in the place of the documents."""
        if isinstance(windows, int):
            return self.slots * windows
        end = "<SEP>" if self.config.sep else "\n"
        return "".join(self.slots if text is None else shield(text) + end for text in windows)

    def taught(self, system: str, user: str, n_windows: Windows, answer: str) -> tuple[list[int], int]:
        """Ids of a training row: a prompt with its answer, and the length of the prompt.

        Args:
            system: System message, which is trusted.
            user: User message; its first ``{docs}`` is the place of the memory slots, the rest is text from outside.
            n_windows: Windows to read (see `chat_prompt`).
            answer: The answer, text from outside.

        Returns:
            tuple: The ids of the prompt, the answer and its end token; and the number of ids of the prompt.
        """
        shield = Shield(self._pattern)
        before, _, after = user.partition("{docs}")
        background = self._background(n_windows, shield)
        turns = [_turn("system", system), _turn("user", shield(before) + background + shield(after))]
        prompt = self._encode_chat(turns, shield)
        shielded = shield(answer)
        whole = self._encode_chat([*turns, _turn("assistant", shielded)], shield, answered=True)
        if whole[: len(prompt)] == prompt and len(whole) > len(prompt):
            return whole, len(prompt)
        # The template renders a past answer differently from the prompt of a new one; train on the latter.
        return prompt + self._encode_markup(shielded + self._eos, shield), len(prompt)

    def count_plain(self, text: str) -> int:
        """Number of tokens of a text without special tokens; those that it spells are encoded as text."""
        return len(self.encode_plain(text))

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text without special tokens; those that it spells are encoded as text."""
        return list(self._plain.encode(replace_surrogates(text), add_special_tokens=False).ids)

    def encode_spans(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Like `encode_plain`, with the characters ``(start, end)`` of each token, for several texts."""
        encodings = self._plain.encode_batch(list(map(replace_surrogates, texts)), add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in encodings]

    def encode_markup_batch(self, markup: Sequence[str]) -> list[list[int]]:
        """Ids of trusted strings, whose special tokens are encoded as such (our own training rows)."""
        return [list(encoding.ids) for encoding in self._trusted.encode_batch(list(markup), add_special_tokens=False)]

    def is_slot(self, ids: Iterable[int]) -> list[bool]:
        """Which ids are memory slots."""
        memory = set(self.memory_ids)
        return [token in memory for token in ids]

    def window_spans(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Span of each window in a prompt, ``(start, end)``: its slots and the separator after them."""
        slots = [at for at, slot in enumerate(self.is_slot(ids)) if slot]
        size = self.config.n_mem
        return [(slots[at], slots[at + size - 1] + 1 + self.config.sep) for at in range(0, len(slots), size)]

    def continuation_ids(self, messages: Sequence[dict[str, str]], n_windows: int, text: str) -> list[int]:
        """Ids of an answer after a `chat_prompt`, without end token; special tokens in it are encoded as text."""
        if not text:
            return []
        shield = Shield(self._pattern)
        prompt, turns = self._chat_turns(messages, n_windows, shield)
        shielded = shield(text)
        whole = self._encode_chat([*turns, _turn("assistant", shielded)], shield, answered=True)
        ids = whole[len(prompt) :] if whole[: len(prompt)] == prompt else self._encode_markup(shielded, shield)
        end = next((at for at, token in enumerate(ids) if token in self.eos_ids), len(ids))
        return ids[:end]

    def _encode_chat(self, turns: list[dict[str, str]], shield: Shield, *, answered: bool = False) -> list[int]:
        if not turns:
            return []  # an empty history
        if not self._takes_system and turns[0]["role"] == "system":
            system, *turns = turns
            first = next(index for index, turn in enumerate(turns) if turn["role"] == "user")
            turns[first] = _turn("user", f"{system['content']}\n{turns[first]['content']}")
        markup = self._render(turns, answered=answered)
        if not shield.taken:
            return list(self._trusted.encode(markup, add_special_tokens=False).ids)
        return self._encode_markup(markup, shield)

    def _render(self, turns: list[dict[str, str]], *, answered: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            rendered: Any = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=not answered, enable_thinking=False
            )
        except TemplateError as exc:
            roles = ", ".join(turn["role"] for turn in turns)
            msg = f"the chat template of the base refuses a conversation with the roles {roles}: {exc}"
            raise ValueError(msg) from exc
        return str(rendered)

    def _template_takes_system(self) -> bool:
        try:
            rendered = self._render([_turn("system", "probe-of-system"), _turn("user", "user")])
        except ValueError:
            return False
        return "probe-of-system" in rendered

    def _encode_markup(self, markup: str, shield: Shield) -> list[int]:
        """Ids of trusted markup with shielded text; only special tokens of the markup itself are encoded as special."""
        ids: list[int] = []
        position = 0
        left = None
        for match in [*self._pattern.finditer(markup), None]:
            right = match[0] if match else None
            end = match.start() if match else len(markup)
            ids += self._encode_run(shield.restore(markup[position:end]), left, right)
            if match:
                ids.append(self.token_id(match[0]))
                position, left = match.end(), match[0]
        return ids

    def _encode_run(self, run: str, left: str | None, right: str | None) -> list[int]:
        """Ids of plain text between two special tokens; None stands for the beginning or end of the string."""
        if left is not None and self._strips[left][1]:
            run = run.lstrip(_WHITESPACE)
        if right is not None and self._strips[right][0]:
            run = run.rstrip(_WHITESPACE)
        if not run:
            return []
        before, after = left is not None, right is not None
        ids = list(self._plain.encode(self._edge * before + run + self._edge * after, add_special_tokens=False).ids)
        return ids[int(before) : len(ids) - int(after)]

    # --- answers -----------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def load_tokenizer(base: str, config: ClaraConfig) -> ClaraTokenizer:
    """Load the tokenizer of a base decoder with a checkpoint's memory tokens."""
    from transformers import AutoTokenizer

    return ClaraTokenizer(AutoTokenizer.from_pretrained(base, padding_side="left", trust_remote_code=False), config)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _last_boundary(text: str, end: int) -> int:
    """The last sentence end in the second half of ``text[:end]``, or the last space, or `end`."""
    for pattern, earliest in ((_SENTENCE_END, end // 2), (_SPACE, 1)):
        cuts = [match.end() for match in pattern.finditer(text, 0, end) if earliest <= match.end() <= end]
        if cuts:
            return cuts[-1]
    return end
