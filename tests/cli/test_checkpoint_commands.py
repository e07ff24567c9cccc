"""The commands `clara info` and `clara convert`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version

import pytest

from clara_core.cli.main import app
from clara_core.model.checkpoint.config import Role
from clara_core.model.checkpoint.io import read_checkpoint


@dataclass(frozen=True)
class Done:
    """Exit code and output of a call of the command."""

    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture
def clara(capsys):
    """Run the command in this process."""

    def call(*arguments) -> Done:
        with pytest.raises(SystemExit) as left:
            app([str(argument) for argument in arguments])
        return Done(left.value.code, *capsys.readouterr())

    return call


def test_the_version_is_that_of_the_distribution(clara):
    assert clara("--version") == Done(0, f"clara {version('clara-rag')}\n", "")


def test_info_as_json(clara, parity_folder):
    folder = parity_folder / "e2e" / "checkpoint"
    done = clara("info", folder, "--json", "--base-model", parity_folder / "e2e" / "base", "--device", "cpu")
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    checkpoint = read_checkpoint(folder)
    assert (facts.pop("device"), facts.pop("dtype"), facts.pop("quantization")) == ("cpu", "float32", None)
    assert facts == {
        "model": str(folder),
        "folder": str(folder),
        "training_stage": "stage2",
        "roles": ["compressor", "query reasoner", "generator"],
        "rate": 8,
        "memory_tokens": 8,
        "hidden": 64,
        "dimension": 512,
        "window": 64,
        "lora_rank": 4,
        "vocabulary": 651,
        "base": str(parity_folder / "e2e" / "base"),
        "base_remark": None,
        "bytes": sum(path.stat().st_size for path in folder.glob("*.pth")),
        "identity": checkpoint.identity,
        "licence": None,
    }


def test_info_as_a_table_says_what_is_missing(clara, parity_folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    done = clara("info", parity_folder / "instruct" / "checkpoint")
    assert done.exit_code == 0
    assert "compressor, generator" in done.stdout
    assert "reasoner" not in done.stdout
    assert "Pass base_model=" in " ".join(done.stdout.split())


def test_info_remarks_the_licence_of_released_weights(clara, parity_folder, tmp_path):
    folder = tmp_path / "models--apple--CLaRa-7B-E2E" / "compression-16"
    shutil.copytree(parity_folder / "e2e" / "checkpoint", folder)
    facts = json.loads(clara("info", folder, "--json").stdout)
    assert "Apple's research licence" in facts["licence"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["info", "nowhere"], "no folder 'nowhere'"),
        (["info", ".", "--compression", "0"], "compression must be a positive int"),
        (["convert", "nowhere", "out"], "no folder 'nowhere'"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(clara, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = clara(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("clara: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_damaged_checkpoint_has_no_traceback_in_a_real_process(parity_folder, tmp_path):
    folder = shutil.copytree(parity_folder / "e2e" / "checkpoint", tmp_path / "c")
    (folder / "adapters.pth").write_bytes(b"PK\x03\x04" + bytes(30))
    done = subprocess.run(
        [sys.executable, "-c", "from clara_core.cli.main import app; app()", "info", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "adapters.pth (34 bytes) is truncated or damaged" in done.stderr


def test_convert_writes_safetensors_of_the_same_identity(clara, parity_folder, tmp_path):
    source = parity_folder / "e2e" / "checkpoint"
    done = clara("convert", source, tmp_path / "c")
    assert done.exit_code == 0, done.stderr
    assert sorted(path.suffix for path in (tmp_path / "c").iterdir()) == [
        ".json",
        ".safetensors",
        ".safetensors",
    ]
    assert read_checkpoint(tmp_path / "c").identity == read_checkpoint(source).identity
    again = clara("info", tmp_path / "c", "--json")
    assert json.loads(again.stdout)["roles"] == ["compressor", "query reasoner", "generator"]


def test_convert_with_base_needs_nothing_else_afterwards(clara, parity_folder, tmp_path):
    source = parity_folder / "e2e" / "checkpoint"
    base = parity_folder / "e2e" / "base"
    done = clara("convert", source, tmp_path / "c", "--with-base", "--base-model", base)
    assert done.exit_code == 0, done.stderr
    facts = json.loads(clara("info", tmp_path / "c", "--json").stdout)
    assert facts["base"] == str(tmp_path / "c" / "base")


@pytest.mark.parametrize("role", list(Role))
def test_convert_exports_one_adapter(clara, parity_folder, tmp_path, role):
    word = "reasoner" if role is Role.REASONER else role.label
    source = parity_folder / "e2e" / "checkpoint"
    done = clara("convert", source, tmp_path / "a", "--peft", word)
    assert done.exit_code == 0, done.stderr
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}


def test_convert_says_which_role_is_missing(clara, parity_folder, tmp_path):
    source = parity_folder / "instruct" / "checkpoint"
    done = clara("convert", source, tmp_path / "a", "--peft", "reasoner")
    assert done.exit_code == 2
    assert "has no query reasoner; it has: compressor, generator" in done.stderr
    assert not (tmp_path / "a").exists()


def test_options_that_exclude_each_other(clara, parity_folder, tmp_path):
    source = parity_folder / "e2e" / "checkpoint"
    done = clara("convert", source, tmp_path / "a", "--peft", "generator", "--with-base")
    assert done.exit_code == 2
    assert "exclude each other" in done.stderr
