"""Locating a checkpoint and its base decoder, and the errors if they are missing.

The Hub is a small HTTP server (`tests.hub`); the client is the real one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from clara_core.common.errors import CheckpointError
from clara_core.model.checkpoint.config import ClaraConfig
from clara_core.model.checkpoint.hub import BUNDLED, resolve, resolve_base
from tests.hub import Hub, files_of, from_hub, serving


def config(name: str) -> ClaraConfig:
    return ClaraConfig(decoder_model_name=name)


@pytest.fixture
def release(parity_folder, tmp_path) -> Path:
    """A folder like a released repository: two compression rates in subfolders, no model at its root."""
    for rate, name in ((8, "e2e"), (16, "instruct")):
        shutil.copytree(parity_folder / name / "checkpoint", tmp_path / f"r/compression-{rate}")
    (tmp_path / "r" / "compression-16" / "modeling_clara.py").write_text("raise SystemExit(3)")
    (tmp_path / "r" / "README.md").write_text("a card")
    return tmp_path / "r"


# Folders


def test_a_checkpoint_folder_is_itself(parity_folder):
    folder = parity_folder / "e2e" / "checkpoint"
    assert resolve(folder) == resolve(str(folder)) == resolve(str(folder), compression=8) == folder


def test_a_relative_folder_becomes_absolute(parity_folder, monkeypatch):
    monkeypatch.chdir(parity_folder / "e2e")
    assert resolve("checkpoint") == parity_folder / "e2e" / "checkpoint"
    assert resolve("./checkpoint") == parity_folder / "e2e" / "checkpoint"


def test_compression_chooses_the_subfolder(release):
    assert resolve(release, compression=16) == release / "compression-16"
    assert resolve(release, compression=8) == release / "compression-8"
    with pytest.raises(CheckpointError, match=r"no compression-4; it has 8, 16"):
        resolve(release, compression=4)
    assert resolve(release) == release / "compression-8"  # the lowest rate keeps most of a text
    shutil.rmtree(release / "compression-8")
    assert resolve(release) == release / "compression-16"


def test_another_rate_than_the_folder_holds(parity_folder):
    with pytest.raises(CheckpointError, match="a single checkpoint of rate 8, but compression=16"):
        resolve(parity_folder / "e2e" / "checkpoint", compression=16)


@pytest.mark.parametrize(
    "model, said",
    [
        ("nothing-here", "no folder 'nothing-here'.*not a Hub id"),
        ("../../etc", "no folder '../../etc'"),
        ("a/b/c", "no folder 'a/b/c'"),
        ("org/..", "no folder 'org/..'"),
        ("x" * 5000, "no folder 'xxx"),
        ("~nobody-of-this-name/x", "no folder"),
        (Path("apple/CLaRa-7B-E2E"), "no folder 'apple/CLaRa-7B-E2E'"),  # a path is not a Hub id
    ],
)
def test_names_that_lead_nowhere(model, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        resolve(model)


def test_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither config\.json nor a subfolder"):
        resolve(tmp_path)


def test_a_file_is_no_folder(parity_folder):
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        resolve(parity_folder / "e2e" / "checkpoint" / "config.json")


def test_a_bundled_name_is_never_a_folder_of_the_working_directory(parity_folder, tmp_path, monkeypatch):
    shutil.copytree(parity_folder / "e2e" / "checkpoint", tmp_path / "pocket")
    monkeypatch.chdir(tmp_path)
    assert resolve("./pocket") == tmp_path / "pocket"
    if (BUNDLED["pocket"] / "config.json").is_file():
        assert resolve("pocket") == BUNDLED["pocket"]
    else:
        with pytest.raises(CheckpointError, match="the bundled model 'pocket'"):
            resolve("pocket")


@pytest.mark.parametrize(
    "arguments, error, said",
    [
        ({"model": None}, TypeError, "model must be a name or a path, got NoneType"),
        ({"model": 3}, TypeError, "got int"),
        ({"model": ""}, ValueError, "got ''"),
        ({"model": "a\0b"}, ValueError, "must be a name"),
        ({"model": "x", "compression": "16"}, TypeError, "compression must be an int"),
        ({"model": "x", "compression": True}, TypeError, "compression must be an int"),
        ({"model": "x", "compression": 0}, ValueError, "positive, got 0"),
    ],
)
def test_bad_arguments(arguments, error, said):
    with pytest.raises(error, match=said):
        resolve(**arguments)


# The base decoder


@pytest.mark.parametrize(
    "name",
    [
        "/mnt/somewhere/Mistral-7B-Instruct-v0.2",
        "/mnt/somewhere/Mistral-7B-Instruct-v0.2/",
        r"C:\\models\\Mistral-7B-Instruct-v0.2",
        "../models/Mistral-7B-Instruct-v0.2",
        "Mistral-7B-Instruct-v0.2",
        "mistralai/Mistral-7B-Instruct-v0.2",
    ],
)
def test_a_dead_path_is_known_by_its_last_part(name, tmp_path):
    assert resolve_base(config(name), tmp_path) == "mistralai/Mistral-7B-Instruct-v0.2"


def test_a_base_inside_the_checkpoint(parity_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = parity_folder / "e2e"
    assert resolve_base(config("base"), folder) == str(folder / "base")


def test_a_name_in_a_config_does_not_lead_out_of_its_folder(parity_folder):
    folder = parity_folder / "e2e" / "checkpoint"
    for name in ("../base", "..", "../../base/base"):
        with pytest.raises(CheckpointError, match="Pass base_model="):
            resolve_base(config(name), folder)


def test_an_absolute_base_that_exists(parity_folder, tmp_path):
    base = parity_folder / "e2e" / "base"
    assert resolve_base(config(str(base)), tmp_path) == str(base)


def test_the_callers_base_wins(parity_folder, tmp_path, monkeypatch):
    base = parity_folder / "e2e" / "base"
    named = config("mistralai/Mistral-7B-Instruct-v0.2")
    assert resolve_base(named, tmp_path, base) == str(base)
    assert resolve_base(named, tmp_path, "org/other") == "org/other"
    monkeypatch.chdir(parity_folder / "e2e")
    assert resolve_base(named, tmp_path, "base") == str(base)
    with pytest.raises(CheckpointError, match="base_model is 'nowhere': there is no such folder"):
        resolve_base(named, tmp_path, "nowhere")
    with pytest.raises(CheckpointError, match=r"the folder has no config\.json"):
        resolve_base(named, tmp_path, tmp_path)
    with pytest.raises(TypeError, match="base_model must be"):
        resolve_base(named, tmp_path, 3)


@pytest.mark.parametrize("name", ["/mnt/x/unknown-model", "unknown", "a\0b", "/", ".", "x" * 5000])
def test_an_unknown_base_asks_for_the_argument(name, tmp_path):
    config(name).write(tmp_path)  # "." is the checkpoint itself, which is not a decoder
    with pytest.raises(CheckpointError, match="Pass base_model="):
        resolve_base(config(name), tmp_path)


# The Hub


@pytest.fixture
def hub(release) -> Iterator[Hub]:
    with serving(files_of(release)) as content:
        yield content


def test_a_rate_is_fetched_from_the_hub_without_code_and_found_again_offline(hub, tmp_path):
    home = tmp_path / "home"
    found = from_hub(hub.url, home, model="org/clara", compression=16)
    folder = Path(found["folder"])
    assert folder.name == "compression-16"
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "adapters.pth", "decoder_first_last_layers.pth"}
    assert not any("modeling_clara" in path or "README" in path for path in hub.asked)
    assert not any("compression-8/adapters" in path for path in hub.asked)
    for name in names:
        assert (folder / name).read_bytes() == hub.files[f"compression-16/{name}"]
    asked = len(hub.asked)
    again = from_hub(hub.url, home, model="org/clara", compression=16, local_files_only=True)
    assert again == found
    assert len(hub.asked) == asked


def test_the_smallest_of_several_rates_on_the_hub_is_taken(hub, tmp_path):
    answer = from_hub(hub.url, tmp_path / "home", model="org/clara")
    assert Path(answer["folder"]).name == "compression-8"
    assert not any("compression-16/adapters" in path for path in hub.asked)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"model": "org/clara", "compression": 4}, "no compression-4; it has 8, 16"),
        ({"model": "org/absent"}, "no repo org/absent (revision main) on the Hub"),
        ({"model": "org/gated"}, "must be granted first"),
        ({"model": "org/clara", "revision": "v9"}, "no revision 'v9'"),
        ({"model": "org/clara", "local_files_only": True}, "local_files_only is set"),
    ],
)
def test_what_the_hub_refuses_is_said(hub, tmp_path, arguments, said):
    answer = from_hub(hub.url, tmp_path / "home", **arguments)
    assert said in answer["error"]


def test_a_hub_that_cannot_be_reached(tmp_path):
    answer = from_hub("http://127.0.0.1:9", tmp_path / "home", model="org/clara")
    assert "org/clara (revision main) is not in" in answer["error"]
    assert "could not be reached" in answer["error"]
