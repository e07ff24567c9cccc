"""Losses and gradients of every stage against those that the published code recorded."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from clara_core.checkpoint import read_checkpoint
from clara_core.config import Role
from clara_core.model import ClaraModel
from clara_core.tokens import ANSWER_SYSTEM, ClaraTokenizer, load_tokenizer
from clara_core.training.losses import (
    IGNORE,
    alignment_loss,
    answer_loss,
    contrastive_loss,
    cosine_scores,
    straight_through_top_k,
)
from tests.parity_data import FIXTURES, PARITY

SCP_SYSTEM = (
    "You are a helpful assistant. Given a document, your task is to generate some single questions to cover all key "
    "information of the document and answer them sequentially."
)


def recorded() -> list[tuple[str, str]]:
    return [
        (name, stage) for name in FIXTURES for stage in json.loads((PARITY / name / "golden.json").read_text())["train"]
    ]


def load(name: str) -> tuple[ClaraModel, ClaraTokenizer]:
    checkpoint = read_checkpoint(PARITY / name / "checkpoint")
    tokenizer = load_tokenizer(str(PARITY / name / "base"), checkpoint.config)
    decoder = AutoModelForCausalLM.from_pretrained(PARITY / name / "base", dtype=torch.float32)
    decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = ClaraModel(decoder, checkpoint.config).eval()
    model.load_adapters(checkpoint)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in key)
    return model, tokenizer


def compress(model: ClaraModel, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Memories ``[passages, n_mem, hidden]`` and the alignment loss."""
    states = model.hidden_states(ids, Role.COMPRESSOR)
    ends = torch.tensor([len(row) for row in ids])[:, None]
    columns = torch.arange(states.shape[1])[None]
    texts = columns < ends - model.config.n_mem
    memory = (columns < ends) & ~texts
    return states[memory].view(len(ids), model.config.n_mem, -1), alignment_loss(states, memory, texts)


def conversation(tokenizer: ClaraTokenizer, stage: str, line: dict[str, Any], k: int) -> tuple[list[int], int]:
    """Ids of prompt and answer, and where the answer begins."""
    if stage == "stage1_qa":
        pairs = zip(line["question"], line["answers"], strict=True)
        answer = "\n".join(f"Question: {question}\nAnswer: {text}" for question, text in pairs)
        system, user = SCP_SYSTEM, f"Background:\n{tokenizer.slots}"
    else:
        answer = line["answer"]
        system, user = ANSWER_SYSTEM, f"Background:\n{tokenizer.slots * k}\n\nQuestion:{line['question']}"
    turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    template = tokenizer._tokenizer.apply_chat_template
    prompt = template(turns, tokenize=False, add_generation_prompt=True)
    whole = template([*turns, {"role": "assistant", "content": answer}], tokenize=False)
    ids, beginning = tokenizer.encode_markup_batch([whole, prompt])
    assert ids[: len(beginning)] == beginning
    return ids, len(beginning)


def generator_loss(
    model: ClaraModel, tokenizer: ClaraTokenizer, rows: list[tuple[list[int], int]], read: Tensor
) -> Tensor:
    """The loss of the answers over the memories ``[..., hidden]`` that fill all slots in order."""
    length = max(len(ids) for ids, _ in rows)
    labels = torch.full((len(rows), length), IGNORE)
    slots = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, (ids, start) in enumerate(rows):
        labels[index, start : len(ids)] = torch.tensor(ids[start:])
        slots[index, : len(ids)] = torch.tensor(tokenizer.is_slot(ids))
    states = model.hidden_states(
        [ids for ids, _ in rows], Role.GENERATOR, memories=read.reshape(-1, model.hidden), slots=slots
    )
    return answer_loss(model.head(states), labels)


def gradient_norm(model: ClaraModel, role: Role) -> float:
    """Norm over the adapter of one role, of all layers."""
    squares = 0.0
    for layer in model.routed.values():
        for matrix in (layer.lora_A, layer.lora_B):
            if matrix.grad is not None:
                squares += float(matrix.grad[layer.block(role)].square().sum())
    return squares**0.5


@pytest.mark.parametrize("name, stage", recorded())
def test_losses_and_gradients_are_those_of_the_published_code(name: str, stage: str) -> None:
    model, tokenizer = load(name)
    wanted = json.loads((PARITY / name / "golden.json").read_text())["train"][stage]
    batch = wanted["batch"]
    memories, alignment = compress(model, tokenizer.encode_passages([text for line in batch for text in line["docs"]]))
    assert float(alignment.detach()) == pytest.approx(wanted["mse_loss"], abs=1e-4)
    k = len(batch[0]["docs"])
    read = memories
    if stage.startswith("stage2"):
        questions = model.encode(tokenizer.encode_passages([line["question"] for line in batch]), Role.REASONER)
        candidates = memories.detach().view(len(batch), k, -1)  # [questions, candidates, n_mem * hidden]
        scores = cosine_scores(questions.flatten(1), candidates)
        weights, chosen = straight_through_top_k(scores, min(k, model.config.generation_top_k))
        assert chosen.tolist() == wanted["topk"]
        read, k = weights @ candidates, chosen.shape[1]
    if stage == "stage2_pretrain_retrieval":
        positives = torch.zeros_like(scores, dtype=torch.bool)
        for index, line in enumerate(batch):
            positives[index, line["pos_index"]] = True
        loss = contrastive_loss(scores, positives)
    else:
        loss = generator_loss(model, tokenizer, [conversation(tokenizer, stage, line, k) for line in batch], read)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(wanted["loss"], abs=1e-4)
    for role in Role:
        expected = wanted["grad_norm"].get(role.adapter, 0.0)
        assert gradient_norm(model, role) == pytest.approx(expected, rel=1e-3, abs=1e-6)
