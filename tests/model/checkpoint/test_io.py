"""Reading, writing and exporting checkpoints: each is read completely or refused, written completely or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from clara_core.common.errors import CheckpointError
from clara_core.model.checkpoint.config import Role
from clara_core.model.checkpoint.convert import convert_checkpoint
from clara_core.model.checkpoint.io import (
    EMBED_KEY,
    HEAD_KEY,
    export_peft,
    read_checkpoint,
    write_checkpoint,
)
from tests.model.checkpoint.conftest import A0, edit

FIXTURES = ["e2e", "instruct", "base"]


def same(one, other):
    assert one.config == other.config
    assert one.identity == other.identity
    assert list(one.adapters) == list(other.adapters)
    for role in one.adapters:
        assert one.adapters[role].keys() == other.adapters[role].keys()
        for key, tensor in one.adapters[role].items():
            assert torch.equal(tensor, other.adapters[role][key])
    for key, tensor in one.embeddings.items():
        assert torch.equal(tensor, other.embeddings[key])


# Reading


@pytest.mark.parametrize("name", FIXTURES)
def test_reads_every_adapter_of_a_released_checkpoint(parity_folder, name):
    source = parity_folder / name / "checkpoint"
    checkpoint = read_checkpoint(source)
    raw = torch.load(source / "adapters.pth", weights_only=True)
    assert {role.adapter for role in checkpoint.roles} == set(raw)
    for role, state in checkpoint.adapters.items():
        lora = {key for key in raw[role.adapter] if "lora" in key}
        assert set(state) == lora
        assert all(torch.equal(state[key], raw[role.adapter][key]) for key in lora)
    rows = 640 + len(checkpoint.config.added_tokens)
    assert checkpoint.embeddings[EMBED_KEY].shape == (rows, 64)
    assert checkpoint.embeddings[HEAD_KEY].shape == (rows, 64)
    assert checkpoint.hidden == 64


def test_embeddings_may_come_with_the_adapters(folder, e2e):
    (folder / "decoder_first_last_layers.pth").unlink()
    same(read_checkpoint(folder), e2e)


def test_identity_is_that_of_the_weights(folder, e2e):
    assert read_checkpoint(folder).identity == e2e.identity

    def nudge(content):
        content["encoder_adapter"][A0][0, 0] += 1e-3

    edit(folder, nudge)
    assert read_checkpoint(folder).identity != e2e.identity


def test_identity_does_not_depend_on_the_dtype_of_the_file(folder, tmp_path):
    half = {"adapters.pth": None, "decoder_first_last_layers.pth": None}

    def to_bfloat16(content):
        return {
            key: to_bfloat16(value) if isinstance(value, dict) else value.to(torch.bfloat16)
            for key, value in content.items()
        }

    def to_float32(content):
        return {key: to_float32(value) if isinstance(value, dict) else value.float() for key, value in content.items()}

    for file in half:
        edit(folder, to_bfloat16, file)
    one = read_checkpoint(folder)
    for file in half:
        edit(folder, to_float32, file)
    other = read_checkpoint(folder)
    assert one.adapters[Role.COMPRESSOR][A0].dtype is torch.bfloat16
    assert other.adapters[Role.COMPRESSOR][A0].dtype is torch.float32
    assert one.identity == other.identity


@pytest.mark.parametrize(
    "change, differs",
    [
        ({"compr_rate": 16}, True),
        ({"sep": False}, True),
        ({"decoder_model_name": "elsewhere/model"}, False),
        ({"generation_top_k": 7}, False),
    ],
)
def test_identity_covers_the_facts_that_shape_numbers(folder, e2e, change, differs):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert (read_checkpoint(folder).identity != e2e.identity) is differs


def test_legacy_pth_of_plain_tensors_is_read(folder, e2e):
    content = torch.load(folder / "adapters.pth", weights_only=True)
    torch.save(content, folder / "adapters.pth", _use_new_zipfile_serialization=False)
    same(read_checkpoint(folder), e2e)


# Writing


@pytest.mark.parametrize("name", FIXTURES)
def test_write_and_read_back(parity_folder, tmp_path, name):
    source = read_checkpoint(parity_folder / name / "checkpoint")
    target = tmp_path / "new" / "folder"
    written = write_checkpoint(target, source.config, source.adapters, source.embeddings)
    same(read_checkpoint(target), source)
    same(written, source)
    assert sorted(path.name for path in target.iterdir()) == [
        "adapters.safetensors",
        "config.json",
        "decoder_first_last_layers.safetensors",
    ]
    assert [path.name for path in target.parent.iterdir()] == ["folder"]
    with safe_open(target / "adapters.safetensors", "pt") as file:
        assert f"encoder_adapter/{A0}" in list(file.keys())


def test_tied_embeddings_are_written(e2e, tmp_path):
    shared = e2e.embeddings[EMBED_KEY]
    write_checkpoint(tmp_path / "c", e2e.config, e2e.adapters, {EMBED_KEY: shared, HEAD_KEY: shared})
    assert torch.equal(read_checkpoint(tmp_path / "c").embeddings[HEAD_KEY], shared)
    write_checkpoint(tmp_path / "c", e2e.config, e2e.adapters, {EMBED_KEY: shared})
    assert set(read_checkpoint(tmp_path / "c").embeddings) == {EMBED_KEY}


def test_a_checkpoint_without_embeddings_says_so(e2e, tmp_path):
    write_checkpoint(tmp_path / "c", e2e.config, e2e.adapters, {})
    checkpoint = read_checkpoint(tmp_path / "c")
    assert checkpoint.embeddings == {}
    assert checkpoint.hidden == 64


def test_rewriting_keeps_what_is_not_of_the_checkpoint(folder, e2e):
    (folder / "base").mkdir()
    (folder / "base" / "model.safetensors").write_text("weights of a base")
    (folder / "README.md").write_text("a card")
    checkpoint = read_checkpoint(folder)  # the tensors are views of the files that are replaced
    write_checkpoint(folder, checkpoint.config, checkpoint.adapters, checkpoint.embeddings)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapters.safetensors",
        "base",
        "config.json",
        "decoder_first_last_layers.safetensors",
    ]
    assert (folder / "base" / "model.safetensors").read_text() == "weights of a base"
    same(read_checkpoint(folder), e2e)
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]


def test_what_would_be_refused_is_not_written(e2e, tmp_path):
    adapters = dict(e2e.adapters)
    del adapters[Role.REASONER]
    with pytest.raises(CheckpointError, match="needs query_reasoner_adapter"):
        write_checkpoint(tmp_path / "c", e2e.config, adapters, e2e.embeddings)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_stays(e2e, tmp_path):
    (tmp_path / "c").write_text("mine")
    with pytest.raises(CheckpointError, match="a file of that name"):
        write_checkpoint(tmp_path / "c", e2e.config, e2e.adapters, e2e.embeddings)
    assert (tmp_path / "c").read_text() == "mine"


WRITE_UNDER_LIMIT = """
    import resource, sys
    from clara_core.model.checkpoint.io import read_checkpoint, write_checkpoint
    source, target = sys.argv[1:]
    checkpoint = read_checkpoint(source)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    write_checkpoint(target, checkpoint.config, checkpoint.adapters, checkpoint.embeddings)
"""


def test_a_write_that_fails_half_way_leaves_the_old_checkpoint(parity_folder, tmp_path):
    """The system limits the size of a file, which has the effect of a full disk."""
    old = read_checkpoint(parity_folder / "instruct" / "checkpoint")
    target = tmp_path / "c"
    write_checkpoint(target, old.config, old.adapters, old.embeddings)
    done = subprocess.run(
        [
            *(sys.executable, "-c", textwrap.dedent(WRITE_UNDER_LIMIT)),
            *(parity_folder / "e2e" / "checkpoint", target),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert "CheckpointError: writing the checkpoint" in done.stderr
    assert done.returncode == 1
    same(read_checkpoint(target), old)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_leaves_the_old_checkpoint(parity_folder, e2e, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk],  # noqa: S607
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("no small file system can be mounted here")
    try:
        old = read_checkpoint(parity_folder / "instruct" / "checkpoint")
        write_checkpoint(disk / "c", old.config, old.adapters, old.embeddings)
        with pytest.raises(CheckpointError, match="No space left"):
            write_checkpoint(disk / "c", e2e.config, e2e.adapters, e2e.embeddings)
        same(read_checkpoint(disk / "c"), old)
        assert [path.name for path in disk.iterdir()] == ["c"]
        del old
    finally:
        subprocess.run(["umount", "-l", disk], check=True)  # noqa: S607


def test_a_failure_between_the_renames_is_undone(e2e, folder, monkeypatch):
    """The last rename fails; the old folder must be restored, with its model card."""
    (folder / "README.md").write_text("a card")
    replace = Path.replace

    def fail_on_card(self, target):
        if self.name == "README.md" and ".old-" in str(self):
            raise OSError(5, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail_on_card)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(CheckpointError, match="unchanged"):
        write_checkpoint(folder, e2e.config, e2e.adapters, e2e.embeddings)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
    same(read_checkpoint(folder), e2e)


# Converting and exporting


def test_convert_in_place(folder, e2e):
    convert_checkpoint(read_checkpoint(folder), folder)
    assert not (folder / "adapters.pth").exists()
    same(read_checkpoint(folder), e2e)


def test_convert_with_its_base(parity_folder, e2e, tmp_path):
    base = parity_folder / "e2e" / "base"
    written = convert_checkpoint(e2e, tmp_path / "c", base_model=base, with_base=True)
    assert written.config.decoder_model_name == "base"
    assert written.identity == e2e.identity
    copied = {path.name for path in (tmp_path / "c" / "base").iterdir()}
    assert copied == {path.name for path in base.iterdir()}
    again = convert_checkpoint(read_checkpoint(tmp_path / "c"), tmp_path / "c", with_base=True)
    assert again.config.decoder_model_name == "base"
    in_place = convert_checkpoint(read_checkpoint(tmp_path / "c"), tmp_path / "c")
    assert in_place.config.decoder_model_name == "base"
    moved = convert_checkpoint(read_checkpoint(tmp_path / "c"), tmp_path / "d")
    assert moved.config.decoder_model_name == str(tmp_path / "c" / "base")


def test_convert_cannot_bring_a_base_that_is_not_here(e2e, tmp_path):
    with pytest.raises(CheckpointError, match="is not a local folder"):
        convert_checkpoint(e2e, tmp_path / "c", with_base=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("role", list(Role))
def test_exported_adapter_is_loaded_by_peft_and_equals_merged_weights(parity_folder, e2e, tmp_path, role):
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = parity_folder / "e2e" / "base"
    export_peft(e2e, role, tmp_path / "adapter")
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = merged.state_dict()
    for key, a in e2e.adapters[role].items():
        if "lora_A" in key:
            b = e2e.adapters[role][key.replace("lora_A", "lora_B")]
            weights[key.replace("lora_A.weight", "weight")] += e2e.config.lora_scale * b @ a
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad():
        without = plain(ids).logits
        adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()(ids).logits
        expected = merged(ids).logits
    torch.testing.assert_close(adapted, expected, atol=1e-4, rtol=1e-4)
    assert (adapted - without).abs().max() > 0.1


def test_export_needs_the_role_and_an_empty_folder(parity_folder, e2e, tmp_path):
    instruct = read_checkpoint(parity_folder / "instruct" / "checkpoint")
    with pytest.raises(CheckpointError, match="no query reasoner; it has: compressor, generator"):
        export_peft(instruct, Role.REASONER, tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(CheckpointError, match="not an empty folder"):
        export_peft(e2e, Role.REASONER, tmp_path / "full")
    assert (tmp_path / "full" / "note").read_text() == "mine"
