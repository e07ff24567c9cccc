"""The command `clara ask`, and the splitting of files into passages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_core import ClaraEngine
from clara_core.data.documents import TextFile, cut_passages, read_folder
from clara_core.retrieval.ranking import RERANK
from clara_core.store import MemoryStore
from tests.tiny import build
from tools.pocket_factory.world import ENCYCLOPEDIA

DATA = Path(__file__).parents[2] / "examples" / "data"
QUESTION = "When was the bridge opened?"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(build(tmp_path_factory.mktemp("ask")).folder)


@pytest.fixture(scope="module")
def without_reasoner(tmp_path_factory):
    roles = ("encoder_adapter", "decoder_adapter")
    return str(build(tmp_path_factory.mktemp("ask"), roles=roles).folder)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "bridge.txt").write_text("The bridge was opened in 1907.\n", encoding="utf-8")
    (tmp_path / "towns.md").write_text("# Towns\n\n## Aln\n\nOn a river.\n\n## Wear\n\nOn a hill.\n", encoding="utf-8")
    return tmp_path


# -- the command -----------------------------------------------------------------------------------


def test_json_is_what_the_engine_says(clara, folder, model):
    code, out, err = clara("ask", folder, QUESTION, "--model", model, "--top-k", 2, "--max-tokens", 8, "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    engine = ClaraEngine.from_pretrained(model)
    texts = ["The bridge was opened in 1907.", "# Towns\n\n## Aln\n\nOn a river.", "## Wear\n\nOn a hill."]
    places = [("deep/bridge.txt", 0), ("towns.md", 0), ("towns.md", 30)]
    store = MemoryStore.open("memory://", engine)
    store.add(texts, ids=["0", "1", "2"])
    hits = store.search(QUESTION, 2, mode="hybrid", rerank=RERANK)
    assert hits[0].id == "0"
    answer = engine.answer(QUESTION, store.memories([hit.id for hit in hits]), max_tokens=8, min_confidence=0)
    assert facts.pop("seconds").keys() == {"compress", "search", "answer"}
    assert facts == {
        "question": QUESTION,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "sources": [
            {
                "file": places[int(hit.id)][0],
                "start": places[int(hit.id)][1],
                "score": pytest.approx(hit.score, abs=1e-5),
                "text": hit.text,
            }
            for hit in hits
        ],
        "passages": 3,
        "prompt_tokens": answer.prompt_tokens,
        "memory_tokens": answer.memory_tokens,
        "source_tokens": answer.source_tokens,
        "completion_tokens": answer.completion_tokens,
        "windows_left_out": 0,
        "model": model,
        "files": 2,
        "left_out": [],
        "confidence": pytest.approx(answer.confidence, abs=1e-5),
        "calibrated": False,
        "abstained": False,
        "draft": None,
        "reading": "memory",
        "judged_tokens": answer.judged_tokens,
        "checks": None,
    }


@pytest.mark.parametrize("mode", ["memory", "text"])
def test_a_folder_and_a_store_of_it_are_searched_alike(clara, folder, tmp_path_factory, model, mode):
    store = tmp_path_factory.mktemp("ask") / "store"
    assert clara("index", folder, "--store", store, "--model", model, "--memory-type", "float32")[0] == 0
    options = ("--model", model, "--max-tokens", 8, "--mode", mode, "--json")
    asked = [json.loads(clara("ask", *where, QUESTION, *options)[1]) for where in ((folder,), ("--store", store))]
    ours, stored = ([(one["file"], one["start"], round(one["score"], 5)) for one in a["sources"]] for a in asked)
    assert ours == stored
    assert asked[0]["answer"] == asked[1]["answer"]


def test_an_answer_that_is_not_sure_enough_is_withheld(clara, encyclopedia_files):
    asked = ("ask", encyclopedia_files, "When was Mount Masar first climbed?", "--model", ENCYCLOPEDIA)
    sure = json.loads(clara(*asked, "--json")[1])
    assert sure["calibrated"]
    assert not sure["abstained"]
    out = clara(*asked)[1]
    assert out.startswith(sure["answer"])
    assert f"{sure['confidence']:.0%} sure" in out
    least = min(1.0, sure["confidence"] + 0.01)
    unsure = json.loads(clara(*asked, "--min-confidence", least, "--json")[1])
    assert (unsure["abstained"], unsure["draft"]) == (True, sure["answer"])
    out = clara(*asked, "--min-confidence", least)[1]
    assert out.startswith(f"{unsure['answer']}\nwithheld: {sure['answer']}\n")


def test_an_answer_in_the_words_of_a_passage(clara, folder, model):
    asked = ("ask", folder, QUESTION, "--model", model, "--json")
    quoted, free, default = (json.loads(clara(*asked, *how)[1]) for how in (("--verbatim",), ("--free",), ()))
    texts = [source["text"] for source in quoted["sources"]]
    assert any(quoted["answer"] in text for text in texts)
    assert not any(free["answer"] in text for text in texts)
    assert default["answer"] == free["answer"]  # this checkpoint says nothing else


def test_shows_answer_sources_and_what_was_saved(clara, folder, model):
    code, out, _ = clara("ask", folder, QUESTION, "--model", model, "--max-tokens", 8)
    answer = json.loads(clara("ask", folder, QUESTION, "--model", model, "--max-tokens", 8, "--json")[1])
    assert code == 0
    assert out.startswith(answer["answer"].strip())
    for source in answer["sources"]:
        assert f"{source['score']:6.3f}  {source['file']}" in out
    assert f"{answer['memory_tokens']} memory tokens instead of {answer['source_tokens']}" in out


def test_cited_sentence_and_confidence(clara, encyclopedia_files):
    asked = ("ask", encyclopedia_files, "When was Mount Masar first climbed?", "--model", ENCYCLOPEDIA, "--cite")
    facts = json.loads(clara(*asked, "--json")[1])
    [cited] = facts["citations"]
    source = facts["sources"][cited["document"]]
    assert source["text"][cited["text_start"] : cited["text_end"]] == cited["text"]
    file = (encyclopedia_files / source["file"]).read_text(encoding="utf-8")
    assert cited["verbatim"]
    assert facts["answer"] in cited["text"]
    assert facts["checks"] == {"cited_first": True, "verbatim": True, "grounded": True}
    assert len(facts["attribution"]) == len(facts["sources"])
    code, out, _ = clara(*asked)
    place = source["start"] + cited["text_start"]
    assert code == 0
    assert f"{cited['score']:6.3f}  {source['file']}:{place}\n        {cited['text']}\n" in out
    assert file[place:].startswith(cited["text"])
    assert f"{facts['confidence']:.0%} sure\n" in out


def test_an_uncalibrated_model_says_so(clara, folder, model):
    code, out, _ = clara("ask", folder, QUESTION, "--model", model, "--max-tokens", 8, "--cite")
    assert code == 0
    assert "confidence unknown" in out or "`clara calibrate`" in out


def test_long_files_of_the_examples(clara, model):
    code, out, _ = clara("ask", DATA, QUESTION, "--model", model, "--max-tokens", 4, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["files"] == len([*DATA.glob("*.md"), *DATA.glob("*.txt")])
    assert facts["passages"] > facts["files"]
    assert len(facts["sources"]) == ClaraEngine.from_pretrained(model).answer_top_k == 2
    wider = json.loads(clara("ask", DATA, QUESTION, "--model", model, "--max-tokens", 4, "--top-k", 5, "--json")[1])
    assert len(wider["sources"]) == 5
    assert wider["sources"][:2] == facts["sources"]


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question(clara, folder, model, question):
    code, out, err = clara("ask", folder, question, "--model", model)
    assert (code, out, err) == (2, "", "clara: the question is empty\n")


def test_a_missing_folder(clara, tmp_path, model):
    code, out, err = clara("ask", tmp_path / "nowhere", QUESTION, "--model", model)
    assert (code, out) == (2, "")
    assert err == f"clara: there is no folder {str(tmp_path / 'nowhere')!r}\n"


def test_a_folder_without_texts(clara, tmp_path, model):
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    code, _, err = clara("ask", tmp_path, QUESTION, "--model", model)
    assert code == 2
    named, error = err.splitlines()
    assert named == "left out: photo.png: .png files are not read"
    assert "no file in" in error
    assert ".txt, " in error


def test_texts_without_words(clara, tmp_path, model):
    (tmp_path / "blank.txt").write_text(" \n\n")
    code, _, err = clara("ask", tmp_path, QUESTION, "--model", model)
    assert (code, err.count("\n")) == (2, 2)
    assert "left out: blank.txt: holds no text" in err
    assert "files in" in err


def test_a_missing_model(clara, folder):
    code, _, err = clara("ask", folder, QUESTION, "--model", "/nowhere/at/all")
    assert (code, err.count("\n")) == (2, 1)
    assert "/nowhere/at/all" in err


def test_a_model_without_a_query_reasoner(clara, folder, without_reasoner):
    model = without_reasoner
    code, _, err = clara("ask", folder, QUESTION, "--model", model)
    assert (code, err.count("\n")) == (2, 1)
    assert "query reasoner" in err
    code, out, _ = clara("ask", folder, QUESTION, "--model", model, "--reasoner", "encoder", "--json")
    assert code == 0
    assert len(json.loads(out)["sources"]) == 2


@pytest.mark.parametrize("option", ["--top-k", "--max-tokens"])
def test_numbers_below_one(clara, folder, model, option):
    code, _, err = clara("ask", folder, QUESTION, "--model", model, option, 0)
    assert code == 2
    assert option in err


def test_a_file_that_cannot_be_read_is_named_and_the_rest_is_asked(clara, folder, model):
    (folder / "latin.txt").write_bytes("Größe".encode("latin-1"))
    (folder / "gone.txt").symlink_to(folder / "missing.txt")
    code, out, err = clara("ask", folder, QUESTION, "--model", model, "--max-tokens", 4, "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["left_out"] == [
        "gone.txt: a broken link (No such file or directory)",
        "latin.txt: not UTF-8 (byte 2); convert the file to UTF-8",
    ]
    assert all(f"left out: {line}" in err for line in facts["left_out"])
    assert facts["files"] == 2


def test_hostile_files_are_shown_and_not_obeyed(clara, tmp_path, model):
    (tmp_path / "a[red]b.txt").write_text("[bold]x[/bold] \x1b[31mred <MEM0> </s>\x00 [/nothing]", encoding="utf-8")
    code, out, _ = clara("ask", tmp_path, "[/nothing] \x1b[31m?", "--model", model, "--max-tokens", 4)
    assert code == 0
    assert "a[red]b.txt" in out
    assert "[bold]x[/bold] \ufffd[31mred <MEM0> </s>\ufffd [/nothing]" in out
    assert "\x1b" not in out


def test_as_a_command_of_the_shell_with_bytes_that_are_no_text(folder, model):
    code = "from clara_core.cli.main import app; app()"
    question = b"When \xff?"
    done = subprocess.run(
        [sys.executable, "-c", code, "ask", folder, question, "--model", model, "--max-tokens", "2", "--json"],
        capture_output=True,
        check=True,
        cwd=DATA.parent.parent,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert json.loads(done.stdout)["question"] == "When \udcff?"


def test_what_a_user_sees_is_ours_and_once(folder, model):
    """A truncated question gives one line, without Python's warning and without output of a library."""
    code = "from clara_core.cli.main import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", code, "ask", folder, "Why? " * 200, "--model", model, "--max-tokens", "2"],
        capture_output=True,
        check=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"},
        cwd=DATA.parent.parent,
    )
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("clara: truncated questions[0] of ")


# -- files and passages ----------------------------------------------------------------------------


def whole(text):
    return [(0, len(text))]


def passages_of(name, text, windows=whole):
    return cut_passages(TextFile(name, text), windows)


def test_reads_texts_in_order_and_names_what_is_hidden(folder):
    (folder / ".git").mkdir()
    (folder / ".git" / "notes.txt").write_text("hidden")
    (folder / ".hidden.md").write_text("hidden")
    (folder / "UPPER.TXT").write_bytes(b"\xef\xbb\xbfmark\r\nkept\r\n")
    files, problems = read_folder(folder)
    assert [file.name for file in files] == ["UPPER.TXT", "deep/bridge.txt", "towns.md"]
    assert files[0].text == "mark\r\nkept\r\n"
    assert list(map(str, problems)) == [".git/: hidden", ".hidden.md: hidden"]


def test_reads_one_file(folder):
    files, _ = read_folder(folder / "towns.md")
    assert [file.name for file in files] == ["towns.md"]


def test_markdown_is_cut_at_headings_but_not_in_code():
    text = "# A\n\n## B\n\nOne.\n\n```\n# no heading\n```\n\n## C\nTwo.\n\n#hash no heading\n"
    assert [passage.text for passage in passages_of("f.md", text)] == [
        "# A\n\n## B\n\nOne.\n\n```\n# no heading\n```",
        "## C\nTwo.\n\n#hash no heading",
    ]


def test_plain_text_is_cut_at_lines_that_stand_alone():
    text = "RIVERS\n\nRiver Aln\n\nIt is long.\n\nIt is deep.\n\nRiver Wear\n\nIt is short.\nVery\nshort.\n"
    assert [passage.text for passage in passages_of("f.txt", text)] == [
        "RIVERS\n\nRiver Aln\n\nIt is long.\n\nIt is deep.",
        "River Wear\n\nIt is short.\nVery\nshort.",
    ]


def test_what_is_longer_than_a_window_is_cut_again():
    def windows(text):
        return [(start, min(start + 10, len(text))) for start in range(0, len(text), 10)]

    passages = passages_of("f.md", "# T\n\n" + "word " * 10, windows)
    assert [passage.text for passage in passages] == ["# T\n\nword", *["word word"] * 4, "word"]


@given(st.text(alphabet="ab \n#`.\t\r\u2028é", max_size=200), st.sampled_from(["f.md", "f.txt"]))
def test_no_text_is_lost_and_places_are_right(text, name):
    def windows(section):
        return [(start, min(start + 7, len(section))) for start in range(0, len(section), 7)]

    passages = passages_of(name, text, windows)
    for passage in passages:
        assert text[passage.start :].startswith(passage.text)
    assert "".join("".join(passage.text for passage in passages).split()) == "".join(text.split())
    starts = [passage.start for passage in passages]
    assert starts == sorted(starts)
