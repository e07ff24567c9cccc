"""Workload of the benchmarks: a random model of a chosen shape, saved as a checkpoint, and texts.

Speed does not depend on the values of the weights, so they are random. The language is random, too: words of random
syllables with the frequencies of natural text. The tokenizer is trained on it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from benchmarks.baseline import SYSTEM
from clara_core.common.threads import in_own_thread

CHAT = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '[INST] ' + message['content'] + '\n\n' }}{% elif message['role'] == 'user' %}"
    "{{ message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)
ADAPTERS = ("encoder_adapter", "query_reasoner_adapter", "decoder_adapter")
SPECIALS = ("<unk>", "<s>", "</s>")


@dataclass(frozen=True)
class Shape:
    """A Mistral decoder and the compressor's window."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    window: int = 256
    rate: int = 16
    lora_r: int = 16

    @property
    def n_mem(self) -> int:
        """Memory tokens of one window."""
        return self.window // self.rate

    @property
    def trunk(self) -> int:
        """Weights of all blocks, without norms."""
        head = self.hidden // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_heads * head
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def adapter(self) -> int:
        """Weights of one LoRA adapter."""
        kv = self.kv_heads * self.hidden // self.heads
        sides = 4 * self.hidden + 2 * (self.hidden + kv) + 3 * (self.hidden + self.intermediate)
        return self.layers * self.lora_r * sides

    @property
    def head(self) -> int:
        """Weights of the output head, and of the embeddings."""
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """Weights of the base."""
        return self.trunk + 2 * self.head


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 128, 2, 4, 2, 256, vocabulary=2_000),
        Shape("60m", 512, 8, 8, 4, 1_792, vocabulary=32_000),
        Shape("7b", 4_096, 32, 32, 8, 14_336, vocabulary=32_000),
    )
}


@dataclass
class Language:
    """Random words, the most frequent first, and a tokenizer trained on them."""

    words: list[str]
    tokenizer: PreTrainedTokenizerFast
    random: random.Random
    _weights: list[float] = field(init=False)
    _lengths: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._weights = [1 / (rank + 3) for rank in range(len(self.words))]
        ids = self.tokenizer([" " + word for word in self.words], add_special_tokens=False)
        self._lengths = dict(zip(self.words, map(len, ids["input_ids"]), strict=True))

    def text(self, tokens: int) -> str:
        """A text of about ``tokens`` tokens, never more."""
        words: list[str] = []
        left = tokens - 2  # the first word has no space before it and may take more tokens
        while left > 0:
            [word] = self.random.choices(self.words, self._weights)
            left -= self._lengths[word]
            if left >= 0:
                words.append(word)
        return " ".join(words)

    def passages(self, count: int, mean: float = 96, longest: int = 256) -> list[str]:
        """Passages of log-normal length: ``mean`` tokens on average, at most ``longest``."""
        # The upper limit and whole words lower the mean a little; the factor compensates for it.
        centre, spread = 1.075 * mean, 0.6
        mu = torch.tensor(centre).log().item() - spread**2 / 2
        return [self.text(max(8, min(longest, round(self.random.lognormvariate(mu, spread))))) for _ in range(count)]

    def questions(self, count: int) -> list[str]:
        """Questions of 10 to 24 tokens."""
        return [self.text(self.random.randint(10, 24)) + "?" for _ in range(count)]


def make_language(vocabulary: int, seed: int = 0) -> Language:
    """Words and a byte-level BPE tokenizer of exactly ``vocabulary`` tokens."""
    rng = random.Random(seed)
    syllables = [c + v + e for c in "bcdfghklmnprstvz" for v in "aeiou" for e in ("", "n", "r")]
    words: dict[str, None] = {}
    while len(words) < 2 * vocabulary:
        words["".join(rng.choices(syllables, k=rng.choice((1, 2, 2, 3, 3, 4))))] = None
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The fixed words of a prompt are whole tokens, as in any vocabulary trained on English.
    english = [f"{SYSTEM} Background:\n\n\nQuestion: [INST] [/INST]"] * 1_000
    core.train_from_iterator([*english, *(" " + word for word in words)], trainer)
    unk, bos, eos = SPECIALS
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=unk,
        bos_token=bos,
        eos_token=eos,
        chat_template=CHAT,
        clean_up_tokenization_spaces=False,
    )
    if len(tokenizer) != vocabulary:
        raise RuntimeError(f"asked for {vocabulary} tokens, the training gave {len(tokenizer)}")
    return Language(list(words), tokenizer, rng)


@dataclass(frozen=True)
class Workload:
    """A saved checkpoint, its base, and the language of its texts."""

    shape: Shape
    checkpoint: Path
    base: Path
    language: Language


def prepare(shape: Shape, folder: Path, device: str, dtype: torch.dtype) -> Workload:
    """Write a random base and checkpoint of ``shape`` below ``folder``; its caller's thread gets no helpers."""
    return in_own_thread(lambda: _written(shape, folder, device, dtype))


def _written(shape: Shape, folder: Path, device: str, dtype: torch.dtype) -> Workload:
    torch.manual_seed(0)
    language = make_language(shape.vocabulary)
    config = MistralConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=32_768,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.device(device):
        model = MistralForCausalLM(config).to(dtype)
    base, checkpoint = folder / "base", folder / "checkpoint"
    model.save_pretrained(base)
    language.tokenizer.save_pretrained(base)
    _write_checkpoint(shape, checkpoint, base, model)
    return Workload(shape, checkpoint, base, language)


def _write_checkpoint(shape: Shape, folder: Path, base: Path, model: MistralForCausalLM) -> None:
    linears = {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    }
    adapters = {name: _random_lora(linears, shape.lora_r) for name in ADAPTERS}
    added = shape.n_mem + 3
    embeddings = {
        "model.embed_tokens.weight": _grown(model.get_input_embeddings().weight, added),
        "lm_head.weight": _grown(model.get_output_embeddings().weight, added),
    }
    folder.mkdir()
    facts = {
        "decoder_model_name": str(base),
        "doc_max_length": shape.window,
        "compr_rate": shape.rate,
        "lora_r": shape.lora_r,
        "sep": True,
        "different_mem_tokens": True,
        "kbtc_training": False,
        "generation_top_k": 5,
        "training_stage": "stage2",
    }
    (folder / "config.json").write_text(json.dumps(facts))
    torch.save(adapters, folder / "adapters.pth")
    torch.save(embeddings, folder / "decoder_first_last_layers.pth")


def _random_lora(linears: dict[str, Tensor], r: int) -> dict[str, Tensor]:
    lora: dict[str, Tensor] = {}
    for name, weight in linears.items():
        n_out, n_in = weight.shape
        like = {"device": weight.device, "dtype": weight.dtype}
        lora[f"{name}.lora_A.weight"] = (torch.randn(r, n_in, **like) / n_in**0.5).cpu()
        lora[f"{name}.lora_B.weight"] = (torch.randn(n_out, r, **like) * 0.02).cpu()
    return lora


def _grown(matrix: Tensor, rows: int) -> Tensor:
    new = torch.randn(rows, matrix.shape[1], device=matrix.device, dtype=matrix.dtype) * 0.02
    return torch.cat([matrix.detach(), new]).cpu()


def token_counts(language: Language, texts: Sequence[str]) -> list[int]:
    """Tokens of each text by itself."""
    return [len(ids) for ids in language.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
