"""Damaged, foreign, incomplete or inconsistent checkpoints are refused, and the error states the reason."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path

import pytest
import torch

from clara_core.common.errors import CheckpointError
from clara_core.model.checkpoint.config import Role
from clara_core.model.checkpoint.io import (
    EMBED_KEY,
    HEAD_KEY,
    check_vocabulary,
    export_peft,
    read_checkpoint,
    write_checkpoint,
)
from tests.model.checkpoint.conftest import A0, B0, edit


def refused(folder, said):
    """Assert that reading fails with a CheckpointError whose text matches, and return the error."""
    with pytest.raises(CheckpointError, match=said) as caught:
        read_checkpoint(folder)
    return str(caught.value)


@pytest.mark.parametrize("file", ["adapters.pth", "decoder_first_last_layers.pth"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_pth(folder, file, share):
    path = folder / file
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert file in refused(folder, "is empty|truncated or damaged")


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_truncated_safetensors(e2e, tmp_path, share):
    write_checkpoint(tmp_path / "c", e2e.config, e2e.adapters, e2e.embeddings)
    path = tmp_path / "c" / "adapters.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refused(tmp_path / "c", r"adapters\.safetensors .*truncated")


@pytest.mark.parametrize(
    "content, said",
    [
        (b"<html>not found</html>", "not a file of tensors"),
        (random.Random(7).randbytes(256).replace(b"\x80", b"x"), "not a file of tensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(64), "truncated or damaged"),
    ],
)
def test_foreign_file(folder, content, said):
    (folder / "adapters.pth").write_bytes(content)
    refused(folder, said)


class Evil:
    """An object with code, as an attacker would pickle it into a checkpoint."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_pickled_code_is_never_run(folder, tmp_path, form):
    mark = tmp_path / "ran"
    content = {"encoder_adapter": Evil(mark)}
    if form == "bare pickle":
        (folder / "adapters.pth").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, folder / "adapters.pth", _use_new_zipfile_serialization=form == "zip")
    message = refused(folder, "pickled Python objects")
    assert "weights_only" not in message
    assert not mark.exists()
    pickle.loads(pickle.dumps(content))  # noqa: S301 -- the content really was dangerous
    assert mark.exists()


@pytest.mark.parametrize(
    "content, said",
    [
        ([1, 2], "holds a list, expected a dict"),
        ({"encoder_adapter": 3}, "holds a int under 'encoder_adapter'"),
        ({A0: torch.ones(2, 2)}, "holds a Tensor under"),
        ({"encoder_adapter": {A0: 3}}, "expected a named tensor"),
        ({"other_adapter": {A0: torch.ones(2, 2)}}, "'other_adapter'.*known adapters"),
        ({}, "needs encoder_adapter .*has: none"),
    ],
)
def test_foreign_content(folder, content, said):
    torch.save(content, folder / "adapters.pth")
    refused(folder, said)


def test_missing_files(folder):
    (folder / "adapters.pth").unlink()
    refused(folder, "neither adapters.safetensors nor adapters.pth")


def test_missing_embeddings(folder):
    (folder / "decoder_first_last_layers.pth").unlink()

    def drop(content):
        for state in content.values():
            del state[EMBED_KEY], state[HEAD_KEY]

    edit(folder, drop)
    refused(folder, "hold the embeddings of the memory tokens")


@pytest.mark.parametrize("name", [role.adapter for role in Role])
def test_promised_adapter_is_missing(folder, name):
    edit(folder, lambda content: {key: content[key] for key in content if key != name})
    refused(folder, f"needs {name}")


def test_more_adapters_than_promised_are_kept(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"training_stage": "stage1_2"}))
    assert read_checkpoint(folder).roles == tuple(Role)


def resize_rank(content):
    state = content["encoder_adapter"]
    state[A0], state[B0] = state[A0][:2], state[B0][:, :2]


def drop_half(content):
    del content["decoder_adapter"][B0]


def drop_module(content):
    del content["decoder_adapter"][A0], content["decoder_adapter"][B0]


def drop_layer(content):
    state = content["decoder_adapter"]
    for key in [key for key in state if ".layers.0." in key]:
        del state[key]


def drop_last_layer_of_one(content):
    state = content["decoder_adapter"]
    for key in [key for key in state if ".layers.1." in key]:
        del state[key]


def zero_b(content):
    for key, tensor in content["query_reasoner_adapter"].items():
        if "lora_B" in key:
            tensor.zero_()


def put_nan(content):
    content["encoder_adapter"][A0][1, 2] = float("nan")


def put_inf(content):
    content["decoder_adapter"][B0][0, 0] = float("inf")


def add_key(content):
    content["encoder_adapter"]["model.layers.0.input_layernorm.weight"] = torch.ones(64)


def to_int(content):
    content["encoder_adapter"][A0] = torch.ones(4, 64, dtype=torch.int8)


def to_vector(content):
    content["encoder_adapter"][A0] = torch.ones(4)


def widen(content):
    for layer in (0, 1):
        key = A0.replace("layers.0", f"layers.{layer}")
        for state in content.values():
            state[key] = torch.ones(4, 96)


@pytest.mark.parametrize(
    "change, said",
    [
        (resize_rank, r"layer 0 self_attn\.q_proj has rank 2 \(A\) and 2 \(B\).*lora_r in config.json is 4"),
        (drop_half, r"decoder_adapter: layer 0 self_attn\.q_proj has lora_A without its other"),
        (drop_module, r"layers 0 and 1 differ in self_attn\.q_proj"),
        (drop_layer, r"covers layers \[1\]"),
        (
            drop_last_layer_of_one,
            r"decoder_adapter \(1 layers\) and encoder_adapter \(2 layers\) cover different",
        ),
        (zero_b, "query_reasoner_adapter: every lora_B is zero"),
        (put_nan, f"{A0} holds 1 values that are NaN"),
        (put_inf, f"{B0} holds 1 values that are NaN or infinite"),
        (add_key, "unknown key 'model.layers.0.input_layernorm.weight'"),
        (to_int, "torch.int8, expected a float matrix"),
        (to_vector, r"is \(4,\) torch.float32, expected a float matrix"),
        (widen, "has 64 columns, but the adapters have hidden size"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_adapters_that_do_not_hold_together(folder, change, said):
    edit(folder, change)
    refused(folder, said)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda c: {HEAD_KEY: c[HEAD_KEY]}, "lacks model.embed_tokens.weight"),
        (lambda c: c.update({EMBED_KEY: torch.ones(9, 64)}), "9 rows, not more than the 11 added"),
        (lambda c: c.update({HEAD_KEY: torch.ones(640, 64)}), "do not match each other"),
        (lambda c: c.update({EMBED_KEY: torch.ones(651, 32)}), "32 columns.*hidden size 64"),
        (lambda c: c.update({"model.norm.weight": torch.ones(64)}), "unknown keys.*norm"),
        (lambda c: c[HEAD_KEY].data[3, 4:6].fill_(float("nan")), "lm_head.weight holds 2"),
        (lambda c: c.update({EMBED_KEY: "text"}), "holds a str under"),
    ],
)
def test_embeddings_that_cannot_be(folder, change, said):
    edit(folder, change, "decoder_first_last_layers.pth")
    refused(folder, said)


def test_wrong_vocabulary_names_both_numbers(e2e):
    check_vocabulary(e2e, 651, "the base")
    with pytest.raises(CheckpointError, match=r"651 tokens.*the base .*11 added tokens has 32011"):
        check_vocabulary(e2e, 32011, "the base")


def test_a_peft_folder_is_no_checkpoint(e2e, tmp_path):
    export_peft(e2e, Role.GENERATOR, tmp_path / "peft")
    e2e.config.write(tmp_path / "peft")
    (tmp_path / "peft" / "adapter_model.safetensors").rename(tmp_path / "peft" / "adapters.safetensors")
    refused(tmp_path / "peft", "plain peft folder has only one adapter")
