"""Creates the bundled model before training: its config, its tokenizer and random weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from clara_core.model.checkpoint.config import ClaraConfig, Role
from clara_core.model.decoder import ClaraModel
from clara_core.model.lora import init_adapter
from clara_core.model.tokenizer import ANSWER_SYSTEM, PARAPHRASE_SYSTEM, load_tokenizer
from clara_core.training.model_setup import Opened

CONFIG = ClaraConfig(
    decoder_model_name="base",
    doc_max_length=64,
    compr_rate=4,
    lora_r=16,
    sep=True,
    different_mem_tokens=True,
    generation_top_k=5,
    training_stage="stage2",
)

SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
# Roles are special tokens, so that no text from outside can begin a turn.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}<|system|>{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only system, user and assistant messages are supported.') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-pair tokenizer over words and single digits; characters that it does not know become bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    specials = ["<unk>", "<s>", "</s>", SYSTEM, USER, ASSISTANT]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*specials, *bytes_],
        limit_alphabet=120,
        max_token_length=14,
        min_frequency=20,
        show_progress=False,
    )
    prompts = [
        ANSWER_SYSTEM,
        PARAPHRASE_SYSTEM,
        "Background:\n",
        "\n\nQuestion:",
        "Background: means the same as",
    ]
    tokenizer.train_from_iterator([*texts, *(prompts * 50)], trainer)
    layout = json.loads(tokenizer.to_str())
    # The trainer marks all tokens that it was given as special, but bytes are ordinary pieces of the vocabulary.
    layout["added_tokens"] = [token for token in layout["added_tokens"] if token["content"] in specials]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(layout)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def random_base(vocab_size: int, seed: int) -> MistralForCausalLM:
    """Create the decoder with random weights: hidden size 256, four layers, about four million parameters."""
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        sliding_window=None,
        rope_theta=10_000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",  # the backward pass of fused attention is several times slower on a processor
    )
    model = MistralForCausalLM(config)
    # So that a greeting, which no training text contains, does not get an empty answer.
    model.generation_config = GenerationConfig.from_model_config(config)
    model.generation_config.min_new_tokens = 1
    return model


def write_base(folder: Path, model: MistralForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Save the base decoder and the tokenizer where a checkpoint expects them."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers 5 writes a class name that version 4 does not know; both know this one.
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def open_random(folder: Path, seed: int) -> Opened:
    """Create a model with random weights for the tokenizer in a base folder."""
    tokenizer = load_tokenizer(str(folder), CONFIG)
    model = ClaraModel(random_base(len(tokenizer), seed), CONFIG)
    generator = torch.Generator().manual_seed(seed)
    for layer in model.routed.values():
        for role in Role:
            init_adapter(layer, role, generator)
    vocabulary = len(tokenizer) - len(CONFIG.added_tokens)
    return Opened(model, tokenizer, str(folder), "random weights", set(Role), vocabulary, copy_base=True)
