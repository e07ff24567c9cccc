"""PISCO checkpoints: CLaRa's second stage in another layout. The fixture is `instruct` with PISCO's file names."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from clara_core import CheckpointError, ClaraEngine, RoleError
from clara_core.model.checkpoint.config import ClaraConfig, Role
from clara_core.model.checkpoint.hub import resolve_base
from tests.hub import files_of, from_hub, serving
from tests.parity_data import read_golden

GOLDEN = read_golden("instruct")
# Fields that PISCO's config.json lacks or names differently.
OF_CLARA = ("training_stage", "stage2_retrieval_top_n", "pure_inference", "load_pretrained_checkpoint", "ae_mode")
LEFTOVERS = (
    "model-00001-of-00003.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "modeling_pisco.py",
)


@pytest.fixture
def pisco(tmp_path) -> Path:
    folder = tmp_path / "pisco"
    shutil.copytree(GOLDEN.checkpoint, folder)
    path = folder / "config.json"
    facts = {name: value for name, value in json.loads(path.read_text()).items() if name not in OF_CLARA}
    facts |= {"model_type": "COCOM", "architectures": ["COCOM"], "auto_map": {"AutoModel": "modeling_pisco.COCOM"}}
    path.write_text(json.dumps(facts))
    for name in LEFTOVERS:
        (folder / name).write_bytes(b"raise SystemExit(3)")
    return folder


def change(folder: Path, **facts: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_answers_are_those_of_the_published_code(pisco, caplog):
    with caplog.at_level(logging.WARNING, "clara_core"):
        engine = ClaraEngine.from_pretrained(str(pisco), base_model=str(GOLDEN.base), dtype="float32", device="cpu")
        memories = engine.compress(GOLDEN.documents, overflow="truncate")
    [note] = [record.getMessage() for record in caplog.records if record.name == "clara_core.engine.loader"]
    assert "CC BY-NC 4.0" in note
    torch.testing.assert_close(torch.cat([memory.tokens for memory in memories]), GOLDEN.memory, atol=1e-4, rtol=0)
    for case in GOLDEN.from_text:
        documents = [memories[index] for index in case.documents]
        assert engine.answer(case.question, documents, max_tokens=16).text == case.answer
    assert engine.roles == (Role.COMPRESSOR, Role.GENERATOR)
    with pytest.raises(RoleError, match=r"no query reasoner.*not trained for them"):
        engine.reason(["Where?"])


def test_the_config_is_that_of_the_second_stage(pisco, tmp_path):
    config = ClaraConfig.read(pisco)
    assert (config.family, config.training_stage) == ("PISCO", "stage1_2")
    config.write(tmp_path)  # in CLaRa's layout: the origin of the weights is still recorded
    assert ClaraConfig.read(tmp_path) == config
    assert ClaraConfig.read(GOLDEN.checkpoint).family == "CLaRa"
    assert ClaraConfig.read(GOLDEN.checkpoint).licence_note is None


@pytest.mark.parametrize(
    "name, base",
    [
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistralai/Mistral-7B-Instruct-v0.2"),
        ("/scratch/models/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("/scratch/models/SOLAR-10.7B-Instruct-v1.0", "upstage/SOLAR-10.7B-Instruct-v1.0"),
    ],
)
def test_its_bases_are_known(pisco, name, base):
    change(pisco, decoder_model_name=name)
    assert resolve_base(ClaraConfig.read(pisco), pisco) == base


def test_leftover_shards_and_code_are_not_fetched(pisco, tmp_path):
    with serving(files_of(pisco)) as hub:
        folder = Path(from_hub(hub.url, tmp_path / "home", model="org/clara")["folder"])
    assert {path.name for path in folder.iterdir()} == {"config.json", "adapters.pth", "decoder_first_last_layers.pth"}
    for name in LEFTOVERS:
        assert not any(name in path for path in hub.asked)


@pytest.mark.parametrize(
    "facts, said",
    [
        ({"training_form": "both"}, r"COCOM v1 checkpoint: it has full weights"),
        ({"training_form": "both", "compr_model_name": "google-bert/bert-base-uncased"}, "COCOM v1 checkpoint"),
        ({"model_type": "OSCAR"}, "OSCAR checkpoint: it compresses each passage together with the question"),
        ({"compr_model_name": "mistral_trimmed", "compr_n_layers": 8}, "'mistral_trimmed'.*OSCAR"),
    ],
)
def test_other_kinds_are_refused_by_name(pisco, facts, said):
    change(pisco, **facts)
    with pytest.raises(CheckpointError, match=said) as caught:
        ClaraConfig.read(pisco)
    assert "naver/pisco-mistral" in str(caught.value)


def test_info_says_what_to_know_of_the_licence(clara, pisco):
    code, out, _ = clara("info", pisco, "--base-model", GOLDEN.base, "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["training_stage"] == "stage1_2"
    assert facts["roles"] == ["compressor", "generator"]
    assert "non-commercial" in facts["licence"]
