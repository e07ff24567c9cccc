"""Losses and gradients of every stage, compared with recorded ones of the published code."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from clara_core.data.examples import check_line
from clara_core.model.checkpoint.config import Role
from clara_core.model.checkpoint.io import read_checkpoint
from clara_core.model.decoder import ClaraModel
from clara_core.model.tokenizer import ClaraTokenizer, load_tokenizer
from clara_core.training.line_steps import LineReader
from clara_core.training.objective import Objective, Terms
from tests.parity_data import FIXTURES, PARITY

STAGES = {
    "stage1_qa": "stage1",
    "stage1_2": "stage1_2",
    "stage2": "stage2",
    "stage2_pretrain_retrieval": "contrastive",
}


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


def gradient_norm(model: ClaraModel, role: Role) -> float:
    """Gradient norm of the adapter of one role, over all layers."""
    squares = 0.0
    for layer in model.routed.values():
        for matrix in (layer.lora_A, layer.lora_B):
            if matrix.grad is not None:
                squares += float(matrix.grad[layer.block(role)].square().sum())
    return squares**0.5


@pytest.mark.parametrize("name, recorded_stage", recorded())
def test_losses_and_gradients_are_those_of_the_published_code(name: str, recorded_stage: str) -> None:
    model, tokenizer = load(name)
    wanted = json.loads((PARITY / name / "golden.json").read_text())["train"][recorded_stage]
    stage = STAGES[recorded_stage]
    lines = [check_line(line, stage, f"golden:{number}") for number, line in enumerate(wanted["batch"], start=1)]
    top_k = model.config.generation_top_k
    step = LineReader(tokenizer, model.context, top_k, "truncate", answers=stage == "stage2").step(lines)
    terms = Terms(
        frozen=stage in ("contrastive", "stage2"),
        end_to_end=stage == "stage2",
        top_k=top_k,
        in_batch=False,
        alignment=1.0,
        contrastive=float(stage == "contrastive"),
    )
    outcome = Objective(model, terms)(step)
    if not terms.frozen:
        assert float(outcome.losses["alignment"].detach()) == pytest.approx(wanted["mse_loss"], abs=1e-4)
    if terms.end_to_end:
        assert outcome.chosen is not None
        assert outcome.chosen.tolist() == wanted["topk"]
    loss = outcome.losses["contrastive" if stage == "contrastive" else "answer"]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(wanted["loss"], abs=1e-4)
    for role in Role:
        expected = wanted["grad_norm"].get(role.adapter, 0.0)
        assert gradient_norm(model, role) == pytest.approx(expected, rel=1e-3, abs=1e-6)
