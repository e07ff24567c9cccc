"""Reading config.json: accepted and refused values."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clara_core.common.errors import CheckpointError
from clara_core.model.checkpoint.config import ClaraConfig, Role


def released(parity_folder, name="e2e"):
    return json.loads((parity_folder / name / "checkpoint" / "config.json").read_text())


def write(folder, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def test_reads_a_released_config_and_ignores_the_rest(parity_folder):
    config = ClaraConfig.read(parity_folder / "e2e" / "checkpoint")
    assert config.model_dump() == {
        "decoder_model_name": "/mnt/somewhere/that/does/not/exist/base",
        "doc_max_length": 64,
        "compr_rate": 8,
        "lora_r": 4,
        "sep": True,
        "different_mem_tokens": True,
        "optimize_mem_tokens": True,
        "generation_top_k": 2,
        "training_stage": "stage2",
        "quantization": "no",
        "kbtc_training": False,
        "mixed": False,
        "answer_top_k": None,
        "verbatim": False,
        "question_words": 0.0,
        "family": "CLaRa",
    }
    assert (config.n_mem, config.lora_alpha, config.lora_scale) == (8, 8, 2.0)


def test_added_tokens_come_in_the_order_of_their_ids():
    config = ClaraConfig(decoder_model_name="a/b", doc_max_length=64, compr_rate=16)
    assert config.mem_tokens == ["<MEM0>", "<MEM1>", "<MEM2>", "<MEM3>"]
    assert config.added_tokens == [*config.mem_tokens, "<AE>", "<ENC>", "<SEP>"]


def test_one_memory_token_repeated_is_added_once():
    config = ClaraConfig(
        decoder_model_name="a/b",
        doc_max_length=64,
        compr_rate=16,
        different_mem_tokens=False,
        kbtc_training=True,
    )
    assert config.mem_tokens == ["<MEM>"] * 4
    assert config.added_tokens == ["<MEM>", "<AE>", "<ENC>", "<SEP>", "<KBTC>"]


def test_rates_of_the_releases():
    at = {rate: ClaraConfig(decoder_model_name="a/b", compr_rate=rate).n_mem for rate in (4, 16, 128)}
    assert at == {4: 64, 16: 16, 128: 2}


def test_is_frozen():
    config = ClaraConfig(decoder_model_name="a/b")
    with pytest.raises(ValidationError, match="frozen"):
        config.compr_rate = 4


def test_roles_name_their_adapters():
    assert [role.adapter for role in Role] == [
        "encoder_adapter",
        "query_reasoner_adapter",
        "decoder_adapter",
    ]
    assert [str(role) for role in Role] == ["compressor", "query reasoner", "generator"]
    assert [Role.from_adapter(role.adapter) for role in Role] == list(Role)
    with pytest.raises(ValueError, match=r"'other_adapter'.*known adapters: encoder_adapter"):
        Role.from_adapter("other_adapter")


@pytest.mark.parametrize(
    "stage, roles",
    [
        ("stage1", (Role.COMPRESSOR, Role.GENERATOR)),
        ("stage1_2", (Role.COMPRESSOR, Role.GENERATOR)),
        ("stage2", tuple(Role)),
        ("stage2_pretrain_retrieval", tuple(Role)),
    ],
)
def test_stage_requires_roles(stage, roles):
    config = ClaraConfig(decoder_model_name="a/b", training_stage=stage)
    assert config.required_roles == roles


@given(
    window=st.integers(1, 4096),
    rate=st.integers(1, 4096),
    lora_r=st.integers(1, 256),
    flags=st.tuples(*[st.booleans()] * 4),
    name=st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable() or "\n" in text),
)
def test_what_is_written_is_read_back(tmp_path_factory, window, rate, lora_r, flags, name):
    if rate > window:
        window, rate = rate, window
    sep, different, optimize, kbtc = flags
    config = ClaraConfig(
        decoder_model_name=name,
        doc_max_length=window,
        compr_rate=rate,
        lora_r=lora_r,
        sep=sep,
        different_mem_tokens=different,
        optimize_mem_tokens=optimize,
        kbtc_training=kbtc,
    )
    folder = tmp_path_factory.mktemp("config")
    config.write(folder)
    assert ClaraConfig.read(folder) == config
    assert len(config.mem_tokens) == config.n_mem >= 1


@pytest.mark.parametrize(
    "change, said",
    [
        ({"doc_max_length": "64"}, "doc_max_length.*integer.*'64'"),
        ({"compr_rate": 0}, "compr_rate.*greater than 0"),
        ({"compr_rate": 65}, r"compr_rate \(65\) must be at most doc_max_length \(64\)"),
        ({"lora_r": -4}, "lora_r.*greater than 0"),
        ({"sep": "yes"}, "sep.*boolean"),
        ({"training_stage": "stage9"}, "training_stage must be one of .* got 'stage9'"),
        ({"compr_model_name": "bert-base"}, "separate compressor model.*'bert-base'"),
        ({"decoder_model_name": None}, "decoder_model_name.*string"),
    ],
)
def test_values_that_cannot_be(parity_folder, tmp_path, change, said):
    with pytest.raises(CheckpointError, match=said):
        ClaraConfig.read(write(tmp_path, released(parity_folder) | change))


@pytest.mark.parametrize("name", ["doc_max_length", "lora_r", "sep", "training_stage"])
def test_missing_field_is_named(parity_folder, tmp_path, name):
    content = released(parity_folder)
    del content[name]
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        ClaraConfig.read(write(tmp_path, content))


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json in"):
        ClaraConfig.read(tmp_path)


@pytest.mark.parametrize("content", ["{", "", "[1, 2]", '"text"'])
def test_broken_or_foreign_json(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"not valid JSON|expected a JSON object"):
        ClaraConfig.read(write(tmp_path, content))


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        ClaraConfig.read(tmp_path)
