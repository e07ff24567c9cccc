"""A plain baseline: the model as the published code runs it, on transformers and peft.

It follows the steps of that code, but none of the code was copied, and it gives the same results as the engine:

* Every passage and every question is padded on the left to the window.
* The whole causal LM runs over it, with the output head on all positions and the states of all layers kept.
* The active peft adapter is switched for each role.
* The candidates are compressed again for every question.
* Memory tokens are put into the prompt row by row in a Python loop.
* Answers come from ``generate(inputs_embeds=...)`` with a growing cache.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

COMPRESSOR = "encoder_adapter"
REASONER = "query_reasoner_adapter"
GENERATOR = "decoder_adapter"
BATCH = 16  # passages of a forward pass

SYSTEM = (
    "You are a helpful assistant. Your task is to extract relevant information from provided "
    "documents and to answer to questions as briefly as possible."
)


class Baseline:
    """Runs a released checkpoint: from texts to tensors and answers.

    Args:
        checkpoint: Folder with ``config.json`` and the two ``.pth`` files.
        base: Folder of the base decoder.
        device: Device to run on.
        dtype: Type of all weights.
    """

    def __init__(self, checkpoint: Path, base: Path, device: str, dtype: torch.dtype) -> None:
        config = json.loads((checkpoint / "config.json").read_text())
        self.window: int = config["doc_max_length"]
        self.n_mem: int = self.window // config["compr_rate"]
        self.device = device
        names = [f"<MEM{index}>" for index in range(self.n_mem)]
        self.tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
        self.tokenizer.add_special_tokens({"additional_special_tokens": [*names, "<AE>", "<ENC>", "<SEP>"]})
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.bos_token
        self.slots = "".join(names) + "<SEP>"
        self.mem_ids = self.tokenizer.convert_tokens_to_ids(names)
        self.model = self._load(checkpoint, base, config["lora_r"], dtype)

    def _load(self, checkpoint: Path, base: Path, r: int, dtype: torch.dtype) -> PeftModel:
        decoder = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        decoder.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        rows = torch.load(checkpoint / "decoder_first_last_layers.pth", weights_only=True)
        decoder.get_input_embeddings().weight.data = rows["model.embed_tokens.weight"].to(dtype)
        decoder.get_output_embeddings().weight.data = rows["lm_head.weight"].to(dtype)
        adapters = torch.load(checkpoint / "adapters.pth", weights_only=True)
        lora = LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=2 * r, target_modules="all-linear")
        first, *others = adapters
        model = get_peft_model(decoder, lora, adapter_name=first)
        for name in others:
            model.add_adapter(name, lora)
        for name, state in adapters.items():
            renamed = {f"base_model.model.{key}": tensor for key, tensor in state.items()}
            set_peft_model_state_dict(model, renamed, adapter_name=name)
        # peft keeps adapters in float32 by default; the released checkpoints run in one dtype.
        return model.to(self.device, dtype).eval()

    @torch.no_grad()
    def _encode(self, adapter: str, texts: Sequence[str]) -> Tensor:
        """Memory tokens of texts, padded to the window: [n, n_mem, hidden]."""
        self.model.set_adapter(adapter)
        bos, eos = self.tokenizer.bos_token, self.tokenizer.eos_token
        padded = self.tokenizer(
            [f"<ENC>{bos}{text}{eos}" for text in texts],
            add_special_tokens=False,
            padding="max_length",
            truncation=True,
            max_length=self.window + 3,
            return_tensors="pt",
        )
        memory = torch.tensor([self.mem_ids]).expand(len(texts), -1)  # [n, n_mem]
        ids = torch.cat([padded["input_ids"], memory], dim=1).to(self.device)
        mask = torch.cat([padded["attention_mask"], torch.ones_like(memory)], dim=1)
        output = self.model(
            input_ids=ids,
            attention_mask=mask.to(self.device),
            output_hidden_states=True,
            use_cache=False,
        )
        return output.hidden_states[-1][:, -self.n_mem :].clone()

    def compress(self, texts: Sequence[str]) -> Tensor:
        """Memories of passages: [n, n_mem, hidden]."""
        batches = [texts[at : at + BATCH] for at in range(0, len(texts), BATCH)]
        return torch.cat([self._encode(COMPRESSOR, batch) for batch in batches])

    def reason(self, questions: Sequence[str]) -> Tensor:
        """Memories of questions: [n, n_mem, hidden]."""
        return self._encode(REASONER, questions)

    def rank(self, question: str, texts: Sequence[str]) -> list[int]:
        """Rank the candidates, best first; they are compressed for each call."""
        memories = self.compress(texts).flatten(1).float()
        query = self.reason([question]).flatten(1).float()
        scores = torch.nn.functional.cosine_similarity(query, memories)
        order: list[int] = scores.argsort(descending=True).tolist()
        return order

    def answer(self, question: str, memories: Tensor, max_tokens: int) -> str:
        """Greedy answer from ``memories`` [k, n_mem, hidden]."""
        [answer] = self.answers([question], memories[None], max_tokens)
        return answer

    @torch.no_grad()
    def answers(self, questions: Sequence[str], memories: Tensor, max_tokens: int) -> list[str]:
        """Greedy answers in one batch from ``memories`` [questions, k, n_mem, hidden], padded on the left."""
        self.model.set_adapter(GENERATOR)
        slots = self.slots * memories.shape[1]
        prompts = [
            self.tokenizer.apply_chat_template(
                [
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": f"Background:\n{slots}\n\nQuestion:{question}"},
                ],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
            )
            for question in questions
        ]
        encoded = self.tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        ids = encoded["input_ids"].to(self.device)
        embeds = self.model.get_input_embeddings()(ids).clone()  # [questions, seq, hidden]
        known = set(self.mem_ids)
        for row in range(len(ids)):
            slot = memories[row].reshape(-1, memories.shape[-1]).to(embeds)
            at = 0
            for position in range(ids.shape[1]):
                if ids[row, position].item() in known:
                    embeds[row, position] = slot[at]
                    at += 1
        written = self.model.generate(
            inputs_embeds=embeds,
            attention_mask=encoded["attention_mask"].to(self.device),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        texts: list[str] = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return texts
