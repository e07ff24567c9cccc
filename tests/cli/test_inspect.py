"""The command `clara inspect`: the fidelity of memories of files and of a store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.known import Known
from tools.pocket_factory.world import ENCYCLOPEDIA


@pytest.fixture
def folder(tmp_path: Path, known: Known) -> Path:
    made = tmp_path / "texts"
    made.mkdir()
    for number, text in enumerate(known.texts[:2]):
        (made / f"{number}.md").write_text(text, encoding="utf-8")
    (made / "codes.md").write_text("The key of locker Q7-41 is `x9_kq-77` and it costs 3,417 marks.", encoding="utf-8")
    return made


def test_files_and_a_store_say_the_same(folder: Path, tmp_path: Path, clara) -> None:
    code, out, err = clara("inspect", folder, "--model", ENCYCLOPEDIA, "--json", "--most", "2")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["passages"] >= 3
    assert facts["spans"] > facts["weak"] > 0
    assert len(facts["worst"]) == 2
    assert facts["worst"][0]["source"].startswith("codes.md")  # unlike all text that the model was trained on
    for span in facts["worst"][0]["spans"]:
        assert facts["worst"][0]["text"][span["start"] : span["end"]] == span["text"]
    store = tmp_path / "store"
    assert clara("index", folder, "--store", store, "--model", ENCYCLOPEDIA)[0] == 0
    code, out, err = clara("inspect", "--store", store, "--model", ENCYCLOPEDIA, "--json")
    assert code == 0, err
    assert json.loads(out)["spans"] == facts["spans"]


def test_weak_words_are_marked(folder: Path, clara) -> None:
    code, out, _ = clara("inspect", folder, "--model", ENCYCLOPEDIA)
    assert code == 0
    assert "codes.md" in out
    assert "%)" in out
    assert "are more likely misread than not" in " ".join(out.split())


def test_one_place_is_needed(folder: Path, clara) -> None:
    assert "give either a folder or --store" in clara("inspect", "--model", ENCYCLOPEDIA)[2]
    assert clara("inspect", folder, "--store", "x", "--model", ENCYCLOPEDIA)[0] == 2
