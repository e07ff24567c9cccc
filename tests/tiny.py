"""Creates tiny random checkpoints: a base, a tokenizer, three LoRAs with non-zero B as after training, and files.

    tiny = build(tmp_path, "qwen2")
    engine = ClaraEngine.from_pretrained(tiny.folder, base_model=str(tiny.base), dtype="float32")
    twin = tiny.reference()

The result depends only on the arguments and ``seed``: the same call gives the same bytes. The three families differ in
what matters to a loader. Mistral accepts a system turn, and the Llama template here refuses one. Qwen2 has biases on q,
k and v, one matrix for input and output embeddings, a byte-level tokenizer without BOS, and two end tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from torch import Tensor
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.reference import COMPRESSOR, GENERATOR, REASONER, Reference

Family = Literal["mistral", "llama", "qwen2"]
FAMILIES: tuple[Family, ...] = ("mistral", "llama", "qwen2")
ROLES = (COMPRESSOR, REASONER, GENERATOR)
STAGES = {1: "stage1", 2: "stage1_2", 3: "stage2"}

TEXTS = (
    "Weldenia is a genus of flowering plants in the spiderwort family.",
    "The bridge over the river Aln was opened in 1907 and is 214 metres long.",
    "Short note.",
    "富士山 is 3,776 m high; le mont Blanc culmine à 4 806 mètres — both are climbed in summer!",
    "def total(values): return sum(v for v in values if v > 0)  # naïve 🙂",
)

NO_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
# Regular expression by which Qwen2 splits text into words, from its tokenizer file.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


@dataclass(frozen=True)
class Tiny:
    """A checkpoint folder, the folder of its base, and the values that were written to them."""

    folder: Path
    base: Path
    config: dict[str, Any]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    adapters: dict[str, dict[str, Tensor]]
    embeddings: dict[str, Tensor]

    @property
    def n_mem(self) -> int:
        n_mem: int = self.config["doc_max_length"] // self.config["compr_rate"]
        return n_mem

    def reference(self) -> Reference:
        """The reference implementation for an engine that reads ``folder``."""
        return Reference(self.model, self.tokenizer, self.config, self.adapters, self.embeddings)


def build(
    folder: Path,
    family: Family = "mistral",
    *,
    roles: Sequence[str] = ROLES,
    window: int = 64,
    rate: int = 8,
    lora_r: int = 4,
    seed: int = 0,
    distinct_memory_tokens: bool = True,
    file_format: Literal["pth", "safetensors"] = "pth",
) -> Tiny:
    """Write a random checkpoint to ``folder/checkpoint`` and its base to ``folder/base``.

    Args:
        folder: An empty or missing folder.
        family: The shape of the base.
        roles: Names of the adapters in the checkpoint; their number decides ``training_stage``.
        window: ``doc_max_length``.
        rate: ``compr_rate``; there are ``window // rate`` memory tokens.
        lora_r: Rank of each adapter.
        seed: Seed of all random numbers.
        distinct_memory_tokens: Whether there are ``<MEM0> … <MEMn>``, instead of one ``<MEM>`` that is repeated.
        file_format: The released ``.pth`` files, or the project's own ``.safetensors``.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(family)
    model = make_model(family, tokenizer)
    base = folder / "base"
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)

    config = {
        "decoder_model_name": str(base),
        "doc_max_length": window,
        "compr_rate": rate,
        "lora_r": lora_r,
        "sep": True,
        "different_mem_tokens": distinct_memory_tokens,
        "optimize_mem_tokens": True,
        "generation_top_k": 2,
        "training_stage": STAGES[len(roles)],
        "quantization": "no",
        "kbtc_training": False,
    }
    n_memory_names = window // rate if distinct_memory_tokens else 1
    vocabulary = len(tokenizer) + n_memory_names + 3  # <AE> <ENC> <SEP>
    adapters = {role: random_lora(model, lora_r) for role in roles}
    embeddings = random_embeddings(model, vocabulary)
    checkpoint = folder / "checkpoint"
    if file_format == "pth":
        save_released(checkpoint, config, adapters, embeddings)
    else:
        save_own(checkpoint, config, adapters, embeddings)
    return Tiny(checkpoint, base, config, model, tokenizer, adapters, embeddings)


def make_tokenizer(family: Family) -> PreTrainedTokenizerBase:
    """The tokenizer of the parity fixtures or, for Qwen2, a byte-level BPE without BOS."""
    if family == "qwen2":
        return _byte_level_tokenizer()
    tokenizer = AutoTokenizer.from_pretrained(Path(__file__).parent / "parity" / "e2e" / "base")
    if family == "llama":
        tokenizer.chat_template = NO_SYSTEM
    return tokenizer


def _byte_level_tokenizer() -> PreTrainedTokenizerBase:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    core = Tokenizer(models.BPE())
    # Newer versions of transformers set these two whatever the file says; older ones read the file.
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXTS, trainer)
    core.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


def make_model(family: Family, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A random decoder: two layers, hidden size 64, four heads that share two key-value heads."""
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.1,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model: PreTrainedModel
    if family == "mistral":
        model = MistralForCausalLM(MistralConfig(**shape, sliding_window=None))
    elif family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**shape, tie_word_embeddings=True))
        ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
        model.generation_config.eos_token_id = ends
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("proj.bias"):
                    weight.normal_(std=0.1)
    return model.eval()


def random_lora(model: PreTrainedModel, r: int, std: float = 0.1) -> dict[str, Tensor]:
    """LoRA tensors for every linear layer of every block; B is not zero, as after training."""
    lora: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            n_out, n_in = module.weight.shape
            lora[f"{name}.lora_A.weight"] = torch.randn(r, n_in) * std
            lora[f"{name}.lora_B.weight"] = torch.randn(n_out, r) * std
    return lora


def random_embeddings(model: PreTrainedModel, vocabulary: int, std: float = 0.1) -> dict[str, Tensor]:
    """Embeddings of the base, with random rows for the added tokens."""
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    new = vocabulary - table.shape[0]
    rows = torch.randn(new, table.shape[1]) * std
    grown = torch.cat([table.detach(), rows])
    if head is table:
        return {"model.embed_tokens.weight": grown, "lm_head.weight": grown.clone()}
    head_rows = torch.randn(new, head.shape[1]) * std
    return {
        "model.embed_tokens.weight": grown,
        "lm_head.weight": torch.cat([head.detach(), head_rows]),
    }


def save_released(
    folder: Path,
    config: Mapping[str, Any],
    adapters: Mapping[str, Mapping[str, Tensor]],
    embeddings: Mapping[str, Tensor],
) -> None:
    """Write the released layout: ``config.json`` and two ``.pth`` files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "CLaRa", **config}, indent=1))
    torch.save({name: dict(lora) for name, lora in adapters.items()}, folder / "adapters.pth")
    torch.save(dict(embeddings), folder / "decoder_first_last_layers.pth")


def save_own(
    folder: Path,
    config: Mapping[str, Any],
    adapters: Mapping[str, Mapping[str, Tensor]],
    embeddings: Mapping[str, Tensor],
) -> None:
    """Write the project's own layout (safetensors)."""
    from clara_core.model.checkpoint.config import ClaraConfig, Role
    from clara_core.model.checkpoint.io import write_checkpoint

    by_role = {role: adapters[role.adapter] for role in Role if role.adapter in adapters}
    write_checkpoint(folder, ClaraConfig(**config), by_role, embeddings)
