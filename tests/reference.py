"""A slow and simple reference implementation of CLaRa, without any optimisation.

Each role has a complete copy of the base decoder with resized and replaced embeddings, and with the role's LoRA merged
into the weights (``W + scale * B @ A``). Passages are read one by one without padding. Answers are greedy, and the
whole sequence is computed again for every token: no cache, no batch, no role routing, no ``peft``. All is float32 on
the CPU. Every fast path of the engine is compared with this module, and this module with the recorded results of the
published code.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

COMPRESSOR = "encoder_adapter"
REASONER = "query_reasoner_adapter"
GENERATOR = "decoder_adapter"

ANSWER_SYSTEM = (
    "You are a helpful assistant. Your task is to extract relevant information from provided "
    "documents and to answer to questions as briefly as possible."
)
PARAPHRASE_SYSTEM = (
    "You are a helpful assistant. Your task is follow the instructions to paraphrase the background information."
)

TensorDict = Mapping[str, Tensor]


def merged(base: PreTrainedModel, lora: TensorDict, scale: float) -> PreTrainedModel:
    """A copy of ``base``, with ``scale * B @ A`` added to every weight in ``lora``."""
    model = copy.deepcopy(base)
    weights = dict(model.named_parameters())
    for name, a in lora.items():
        if name.endswith(".lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            b = lora[f"{stem}.lora_B.weight"]  # [out, r] beside a [r, in]
            weights[f"{stem}.weight"].data += scale * (b.float() @ a.float())
    return model


class Reference:
    """One merged model for each role; the methods correspond to those of the engine.

    Args:
        base: The decoder without adapters and with its own vocabulary.
        tokenizer: Tokenizer of the base; a copy of it gets the added tokens.
        config: A released ``config.json``, of which only properties of the model are read.
        adapters: Adapter name -> LoRA tensors (``….lora_A.weight`` / ``….lora_B.weight``).
        embeddings: ``model.embed_tokens.weight`` and ``lm_head.weight`` after the resize.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: Mapping[str, Any],
        adapters: Mapping[str, TensorDict],
        embeddings: TensorDict,
    ) -> None:
        self.window: int = config["doc_max_length"]
        self.n_mem: int = self.window // config["compr_rate"]
        self.top_k: int = config["generation_top_k"]
        distinct = config["different_mem_tokens"]
        names = [f"<MEM{i}>" for i in range(self.n_mem)] if distinct else ["<MEM>"]
        self.tokenizer = copy.deepcopy(tokenizer)
        added = [*names, "<AE>", "<ENC>", "<SEP>"] + ["<KBTC>"] * bool(config["kbtc_training"])
        self.tokenizer.add_special_tokens({"additional_special_tokens": added})
        self.mem_string = "".join(names if distinct else names * self.n_mem)
        self.mem_ids: list[int] = self._ids(self.mem_string)

        bare = copy.deepcopy(base).float().eval()
        bare.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        bare.get_input_embeddings().weight.data = embeddings["model.embed_tokens.weight"].float()
        bare.get_output_embeddings().weight.data = embeddings["lm_head.weight"].float()
        self.bare = bare
        self.models = {name: merged(bare, lora, scale=2.0) for name, lora in adapters.items()}

    @classmethod
    def load(cls, checkpoint: Path, base: Path) -> Reference:
        """Read a checkpoint folder in the released layout and the folder of its base."""
        return cls(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            AutoTokenizer.from_pretrained(base),
            json.loads((checkpoint / "config.json").read_text()),
            torch.load(checkpoint / "adapters.pth", weights_only=True),
            torch.load(checkpoint / "decoder_first_last_layers.pth", weights_only=True),
        )

    # -- tokens ------------------------------------------------------------------------------

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def passage_ids(self, text: str) -> list[int]:
        """Ids of a passage or a question as the compressor reads it, including memory ids."""
        bos, eos = self.tokenizer.bos_token or "", self.tokenizer.eos_token
        return self._ids(f"<ENC>{bos}{text}{eos}")[: self.window + 3] + self.mem_ids

    def prompt_ids(self, system: str, user: str) -> list[int]:
        """Ids of a prompt in the chat format of the base, up to the assistant's turn."""
        turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        try:
            prompt = self.tokenizer.apply_chat_template(turns, **options)
        except TemplateError:  # the chat template refuses a system turn
            turns = [{"role": "user", "content": f"{system}\n{user}"}]
            prompt = self.tokenizer.apply_chat_template(turns, **options)
        return self._ids(prompt)

    def slots(self, n_documents: int) -> str:
        """A text with the memory positions that ``n_documents`` memories overwrite."""
        return (self.mem_string + "<SEP>") * n_documents

    # -- the roles ---------------------------------------------------------------------------

    @torch.no_grad()
    def _read(self, adapter: str, text: str) -> Tensor:
        """Last hidden state (after the final norm) at the memory positions: [n_mem, hidden]."""
        ids = torch.tensor([self.passage_ids(text)])
        return self.models[adapter].model(input_ids=ids).last_hidden_state[0, -self.n_mem :]

    def compress(self, texts: Sequence[str]) -> Tensor:
        """Memories of passages, truncated to the window: [n, n_mem, hidden]."""
        return torch.stack([self._read(COMPRESSOR, text) for text in texts])

    def reason(self, questions: Sequence[str], adapter: str = REASONER) -> Tensor:
        """Memories of questions: [n, n_mem, hidden]."""
        return torch.stack([self._read(adapter, text) for text in questions])

    def score(self, queries: Tensor, memories: Tensor) -> Tensor:
        """Cosine of every query with every memory: [n_queries, n_memories]."""
        left = torch.nn.functional.normalize(queries.flatten(1), dim=-1)
        right = torch.nn.functional.normalize(memories.flatten(1), dim=-1)
        return left @ right.T

    @torch.no_grad()
    def _write(self, prompt: list[int], memories: Tensor, max_tokens: int) -> str:
        """Greedy text after ``prompt``, whose memory positions are overwritten by ``memories``."""
        model = self.models[GENERATOR]
        embed = model.get_input_embeddings()
        ids = torch.tensor(prompt)
        embeds = embed(ids).clone()  # [seq, hidden]
        is_memory = torch.isin(ids, torch.tensor(self.mem_ids))
        embeds[is_memory] = memories.reshape(-1, memories.shape[-1])
        eos = model.generation_config.eos_token_id
        stops = set(eos if isinstance(eos, list) else [eos]) | {self.tokenizer.eos_token_id}
        written: list[int] = []
        while len(written) < max_tokens:
            logits = model(inputs_embeds=embeds[None], use_cache=False).logits[0, -1]
            token = int(logits.argmax())
            if token in stops:
                break
            written.append(token)
            embeds = torch.cat([embeds, embed(torch.tensor([token]))])
        return self.tokenizer.decode(written, skip_special_tokens=True)

    @torch.no_grad()
    def judge(self, prompt: list[int], memories: Tensor, said: list[int], hidden: Sequence[int] = ()) -> Tensor:
        """Log-probability of each token of ``said`` after ``prompt``: [said].

        Positions after the last window do not see the hidden windows, nor the separator after each.
        """
        model = self.models[GENERATOR]
        ids = torch.tensor([*prompt, *said])
        embeds = model.get_input_embeddings()(ids).clone()  # [seq, hidden]
        slots = [at for at, token in enumerate(prompt) if token in set(self.mem_ids)]
        if slots:
            embeds[slots] = memories.reshape(-1, memories.shape[-1])
        seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        for window in hidden:
            own = slots[window * self.n_mem : (window + 1) * self.n_mem]
            seen[slots[-1] + 2 :, own[0] : own[-1] + 2] = False
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
        logits = model(inputs_embeds=embeds[None], attention_mask=mask, use_cache=False).logits[0]  # [seq, vocab]
        shares = logits[len(prompt) - 1 : -1].log_softmax(-1)  # [said, vocab]
        return shares.gather(1, torch.tensor(said)[:, None])[:, 0]

    def answer(self, question: str, memories: Tensor, max_tokens: int) -> str:
        """Answer ``question`` from ``memories`` [k, n_mem, hidden], in their order."""
        user = f"Background:\n{self.slots(len(memories))}\n\nQuestion:{question}"
        return self._write(self.prompt_ids(ANSWER_SYSTEM, user), memories, max_tokens)

    def paraphrase(self, memory: Tensor, instruction: str, max_tokens: int) -> str:
        """Follow ``instruction`` over ``memory`` [n_mem, hidden]; ``{docs}`` marks its slots."""
        user = instruction.replace("{docs}", self.slots(1))
        return self._write(self.prompt_ids(PARAPHRASE_SYSTEM, user), memory[None], max_tokens)


class PlainKernel:
    """Attention over packed rows and over pages, row by row: the results of the GPU kernels, on any device."""

    name = "one row after the other"

    def packed(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        starts: Tensor,
        longest: int,
        scale: float,
        window: int | None,
    ) -> Tensor:
        ends = starts.tolist()
        assert ends[0] == 0
        assert ends[-1] == len(query) == len(key)
        assert longest == max(end - start for start, end in itertools.pairwise(ends))
        rows = [
            plain_attention(query[start:end], key[start:end], value[start:end], scale, window)
            for start, end in itertools.pairwise(ends)
        ]
        return torch.cat(rows)

    def paged(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        table: Tensor,
        lengths: Tensor,
        starts: Tensor,
        queries: int,
        longest: int,
        scale: float,
        window: int | None,
    ) -> Tensor:
        size = keys.shape[1]
        assert starts.tolist() == list(range(0, len(query) + 1, queries))
        rows = []
        for row, length in enumerate(lengths.tolist()):
            assert 0 < length <= longest
            pages = table[row, : -(-length // size)].tolist()
            key = torch.cat([keys[page] for page in pages])[:length]  # [length, kv_heads, dim]
            value = torch.cat([values[page] for page in pages])[:length]
            rows.append(plain_attention(query[row * queries : (row + 1) * queries], key, value, scale, window))
        return torch.cat(rows)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None = None) -> Tensor:
    """Causal attention of the last ``len(query)`` positions of one row, grouped heads: ``[length, heads, dim]``."""
    group = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(group, dim=1).transpose(0, 1) for states in (key, value))
    scores = query.transpose(0, 1) @ key.transpose(1, 2) * scale  # [heads, queries, keys]
    distance = torch.arange(key.shape[1])[None] - torch.arange(key.shape[1])[-len(query) :, None]
    seen = (distance <= 0) & (distance > -(window or key.shape[1]))
    scores = scores.float().masked_fill(~seen.to(scores.device), -torch.inf)
    return (scores.softmax(-1).to(value.dtype) @ value).transpose(0, 1)
