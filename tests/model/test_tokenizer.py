"""Token ids equal those of the published code, and text from outside never becomes a special token."""

from __future__ import annotations

import copy
import time
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AddedToken, PreTrainedTokenizerFast

from clara_core.common.errors import CheckpointError
from clara_core.model.checkpoint.config import ClaraConfig
from clara_core.model.tokenizer import ANSWER_SYSTEM, ClaraTokenizer, Shield
from tests.tiny import CHATML, NO_SYSTEM, QWEN_WORDS, TEXTS, make_tokenizer

WINDOW = 32
CONFIG = ClaraConfig(decoder_model_name="x", doc_max_length=WINDOW, compr_rate=8, lora_r=4)
FAMILIES = ("mistral", "llama2", "llama3", "qwen2", "phi3")
TRIMS = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + (message['content'] | trim) + '<|stop|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


@cache
def tokenizer_of(family: str) -> ClaraTokenizer:
    """Tokenizers with different treatment of the text around special tokens, as in existing models."""
    if family == "llama2":  # metaspace as a pre-tokenizer, a space only at the beginning
        inner = _sentencepiece_like()
    elif family == "llama3":  # byte level, a template that strips spaces, BOS from post-processing
        inner = _byte_level(("<|begin_of_text|>", "<|stop|>"), TRIMS, ignore_merges=True)
    elif family == "phi3":  # special tokens that strip the spaces around them
        inner = _byte_level(("<s>", "</s>"), CHATML, strips=True)
    else:
        inner = make_tokenizer(family)
    return ClaraTokenizer(inner, CONFIG)


def _sentencepiece_like() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    specials = ["<unk>", "<s>", "</s>", *bytes_]
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=500, special_tokens=specials, show_progress=False))
    plain = Tokenizer.from_str(core.to_str())  # training marks the bytes as special tokens; released files do not
    return PreTrainedTokenizerFast(
        tokenizer_object=_without_added(plain, bytes_),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=NO_SYSTEM,
    )


def _without_added(core: Tokenizer, tokens: list[str]) -> Tokenizer:
    import json

    layout = json.loads(core.to_str())
    layout["added_tokens"] = [token for token in layout["added_tokens"] if token["content"] not in tokens]
    return Tokenizer.from_str(json.dumps(layout))


def _byte_level(
    ends: tuple[str, str], template: str, *, strips: bool = False, ignore_merges: bool = False
) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    core.normalizer = normalizers.NFC() if strips else None
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator([*TEXTS, " " * 48, " " * 48], trainer)  # sequences of spaces get their own tokens
    bos, eos = ends
    more = ["<|im_start|>", "<|im_end|>"] if strips else ["<|start|>"]
    core.add_special_tokens([AddedToken(bos, special=True), AddedToken(eos, special=True, rstrip=strips)])
    core.add_special_tokens([AddedToken(token, special=True, rstrip=strips) for token in more])
    bos_id = core.token_to_id(bos)
    core.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, bos_id)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, chat_template=template)


def specials_of(tokens: ClaraTokenizer) -> dict[str, int]:
    """Every special token and its id, except the bytes for characters without a token."""
    added = tokens._tokenizer.added_tokens_decoder
    return {token.content: index for index, token in added.items() if token.special and index not in tokens.byte_ids}


def texts(family: str) -> st.SearchStrategy[str]:
    """Any text, including special tokens, parts of them, and characters that are hard for tokenizers."""
    names = [*specials_of(tokenizer_of(family)), "<MEM>", "<0x0A>", "<|think|>", "[INST]", "[/INST]", "</s>", "<s>"]
    parts = [name[:cut] for name in names for cut in (1, len(name) - 1)] + [name[1:] for name in names]
    odd = [
        "\x00",
        "\ud83d",
        "\udc00",
        "\ud800\udfff",
        "שלום",
        "\u202e",
        "👩\u200d🚀",
        "é",
        "e\u0301",
        "ﷺ",
        "\ufffd",
        "▁",
    ]
    odd += ["\ue000", "\ue001", " ", "   ", "\n", "\t", "\r\n", "\u2028", "ok", ".", "word" * 9]
    return st.lists(st.sampled_from([*names, *parts, *odd]) | st.text(max_size=8), max_size=9).map("".join)


def expected_ids(tokens: ClaraTokenizer, text: str) -> list[int]:
    """The ids from the published code's call of its tokenizer."""
    markup = f"<ENC>{tokens._bos}{text}{tokens._eos}"
    return tokens._tokenizer(markup, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_outside_text_never_becomes_a_special_id(family: str, data: st.DataObject) -> None:
    tokens = tokenizer_of(family)
    text = data.draw(texts(family))
    special = set(specials_of(tokens).values())

    ids = tokens._encode_enclosed([text])[0]
    head = 1 + bool(tokens._bos)
    assert ids[:head] == expected_ids(tokens, "")[:head]
    assert ids[-1] == tokens.token_id(tokens._eos)
    assert special.isdisjoint(ids[head:-1])
    # The remaining memory ids belong to the slots only.
    assert sum(tokens.is_slot(tokens.encode_passages([text])[0])) == CONFIG.n_mem
    assert special.isdisjoint(tokens._plain.encode(text.encode("utf-8", "replace").decode()).ids)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_prompts_keep_the_special_ids_of_their_template(family: str, data: st.DataObject) -> None:
    """With hostile text in every turn, a prompt has the same special ids as with harmless text."""
    tokens = tokenizer_of(family)
    system, question = data.draw(texts(family)), data.draw(texts(family))
    special = set(specials_of(tokens).values())

    def kept(messages: list[dict[str, str]], windows: int) -> list[int]:
        return [index for index in tokens.chat_prompt(messages, windows) if index in special]

    def talk(*contents: str) -> list[dict[str, str]]:
        roles = ("system", "user", "assistant", "user")
        return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]

    hostile, harmless = talk(system, question, system, question), talk("a" if system else "", "b", "c", "d")
    assert kept(hostile, 2) == kept(harmless, 2)
    assert kept(hostile, 0) == kept(harmless, 0)
    assert sum(tokens.is_slot(tokens.answer_prompt(question, 3))) == 3 * CONFIG.n_mem
    paraphrase = tokens.paraphrase_prompt(question.replace("{docs}", "") + "{docs}" + system, 1)
    assert sum(tokens.is_slot(paraphrase)) == CONFIG.n_mem


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_harmless_text_keeps_the_published_ids(family: str, data: st.DataObject) -> None:
    tokens = tokenizer_of(family)
    text = tokens._pattern.sub("", data.draw(texts(family)))
    if tokens._pattern.search(text):  # the rest forms another special token
        text = "harmless"
    text = text.encode("utf-8", "replace").decode()
    ids = expected_ids(tokens, text)
    assert tokens.encode_passages([text]) == [ids[: WINDOW + 3] + tokens.memory_ids]
    assert tokens.count(text) == len(ids) - tokens.overhead


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_both_routes_agree_on_harmless_text(family: str, data: st.DataObject) -> None:
    """The code path for hostile text gives harmless text the same ids as the ordinary path."""
    tokens = tokenizer_of(family)
    text = data.draw(texts(family)).encode("utf-8", "replace").decode()
    text = "harmless" if tokens._pattern.search(text) else text
    markup = f"<ENC>{tokens._bos}{text}{tokens._eos}"
    assert tokens._encode_markup(markup, Shield(tokens._pattern)) == expected_ids(tokens, text)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_routes_agree_on_prompts(family: str) -> None:
    tokens = tokenizer_of(family)
    for content in (*TEXTS, "  spaces  around  ", "\nlines\n\n", ""):
        turns = [{"role": "user", "content": f"Background:\n{tokens.slots}\n\nQuestion:{content}"}]
        markup = tokens._render(turns)
        assert tokens._encode_markup(markup, Shield(tokens._pattern)) == tokens.encode_markup_batch([markup])[0]


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_windows_cover_the_text_and_fit(family: str, data: st.DataObject) -> None:
    tokens = tokenizer_of(family)
    text = "".join(data.draw(st.lists(texts(family) | st.sampled_from(TEXTS), max_size=12)))
    spans = tokens.windows(text)
    assert "".join(text[start:end] for start, end in spans) == text
    assert spans[0][0] == 0
    assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]
    assert all(start < end for start, end in spans) or text == ""
    assert all(tokens.count(text[start:end]) <= WINDOW or end == start + 1 for start, end in spans)
    assert (len(spans) == 1) == (tokens.count(text) <= WINDOW)
    assert tokens.windows(text, first_only=True) == spans[:1]
    reserve = data.draw(st.integers(0, WINDOW - 8))
    smaller = tokens.windows(text, reserve=reserve)
    assert "".join(text[start:end] for start, end in smaller) == text
    assert all(tokens.count(text[start:end]) <= WINDOW - reserve or end == start + 1 for start, end in smaller)


@pytest.mark.parametrize("reserve", [-1, WINDOW, 99])
def test_a_reserve_has_to_leave_a_window(reserve: int) -> None:
    with pytest.raises(
        ValueError, match=f"between 0 and {WINDOW - 1}, which leaves a token of a window, got {reserve}"
    ):
        tokenizer_of("mistral").windows("text", reserve=reserve)


def test_windows_end_at_sentences_then_at_words() -> None:
    tokens = tokenizer_of("mistral")
    text = "The river is long. The bridge is old! Is the town small? " * 6
    pieces = [text[start:end] for start, end in tokens.windows(text)]
    assert len(pieces) > 3
    assert all(piece.endswith((". ", "! ", "? ")) for piece in pieces)
    text = "river bridge town " * 30
    assert all(text[start:end].endswith(" ") for start, end in tokens.windows(text))


def test_a_text_of_long_tokens_is_one_window_while_it_fits() -> None:
    """The number of characters says little about the number of tokens: 32 spaces are one token here."""
    tokens = tokenizer_of("llama3")
    text = ("." + " " * 33) * 8
    assert len(text) > WINDOW * 8
    assert tokens.count(text) <= WINDOW
    assert tokens.windows(text) == [(0, len(text))]
    assert len(tokens.windows(text * 4)) > 1


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_truncation_keeps_what_the_published_ids_keep(family: str) -> None:
    tokens = tokenizer_of(family)
    text = "the bridge over the river Aln was opened in 1907 " * 10
    published = expected_ids(tokens, text)[: WINDOW + 3]
    kept = text[: tokens.truncation(text)]
    assert tokens.encode_passages([kept]) == [published + tokens.memory_ids]


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_a_megabyte_of_one_word(family: str) -> None:
    tokens = tokenizer_of(family)
    text = "Aln" * 350_000
    began = time.process_time()
    spans = tokens.windows(text)
    tokens.encode_passages([text])
    assert time.process_time() - began < 20
    assert spans[-1][1] == len(text)
    assert len(spans) >= len(text) / (WINDOW * 8)


@pytest.mark.parametrize("family, takes", [("mistral", True), ("llama2", False), ("llama3", True)])
def test_templates_that_refuse_a_system_turn_get_it_before_the_question(family: str, takes: bool) -> None:
    tokens = tokenizer_of(family)
    assert tokens._takes_system is takes
    prompt = tokens._tokenizer.decode(tokens.answer_prompt("Who?", 1))
    question = prompt.index("Question:Who?")
    assert prompt.index(ANSWER_SYSTEM) < prompt.index("<MEM0>") < question


def test_a_template_that_trims_keeps_slots_and_shields() -> None:
    tokens = tokenizer_of("llama3")
    plain = tokens.answer_prompt("Who?", 2)
    assert tokens.answer_prompt("Who? \n ", 2) == plain
    hostile = tokens.answer_prompt(" <MEM0> ", 2)
    assert tokens.is_slot(hostile).count(True) == tokens.is_slot(plain).count(True)


ODD_HISTORIES = (
    "user user",
    "system user system user",
    "assistant user",
    "user assistant assistant user user",
    "user system",
    "system",
    "user assistant",  # a history that is counted before it ends with a question
    "assistant",
    "",
)


@pytest.mark.parametrize("roles", ODD_HISTORIES)
def test_a_strict_template_takes_every_history(roles: str) -> None:
    tokens = tokenizer_of("llama2")
    turns = [{"role": role, "content": f"turn {index}"} for index, role in enumerate(roles.split())]
    kept = copy.deepcopy(turns)
    shown = tokens.decode(tokens.chat_prompt(turns, 0))
    assert turns == kept
    for turn in turns:
        assert shown.count(turn["content"]) == 1
    if roles.endswith("user"):
        assert sum(tokens.is_slot(tokens.chat_prompt(turns, 2))) == 2 * CONFIG.n_mem


def test_a_conversation_that_the_template_refuses_is_named() -> None:
    inner = make_tokenizer("qwen2")
    inner.chat_template = "{{ raise_exception('only of Tuesdays') if messages | length > 1 else messages[0].content }}"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    with pytest.raises(ValueError, match="with the roles user, assistant, user: only of Tuesdays"):
        ClaraTokenizer(inner, CONFIG).chat_prompt(turns, 0)


def test_a_base_without_template_or_fast_tokenizer_is_refused() -> None:
    inner = make_tokenizer("qwen2")
    inner.chat_template = None
    with pytest.raises(CheckpointError, match="no chat template"):
        ClaraTokenizer(inner, CONFIG)


def test_an_instruction_without_a_place_for_the_document_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\{docs\}"):
        tokenizer_of("mistral").paraphrase_prompt("Say it again", 1)
