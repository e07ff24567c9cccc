"""The commands `clara index`, `clara search` and `clara ask --store`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("lance", reason="the store is not installed: pip install 'clara-rag[store]'")

from clara_core import ClaraEngine
from clara_core.cli.main import app
from clara_core.store import MemoryStore
from tests.engines import Counter
from tests.tiny import build

ROOT = Path(__file__).parents[2]
QUESTION = "When was the bridge opened?"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(build(tmp_path_factory.mktemp("cli_store")).folder)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    return str(build(tmp_path_factory.mktemp("cli_store"), seed=9).folder)


@pytest.fixture(scope="module")
def engine(model):
    engine = ClaraEngine.from_pretrained(model)
    engine.load()
    return engine


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "bridge.txt").write_text("The bridge was opened in 1907.\n", encoding="utf-8")
    (folder / "towns.md").write_text("# Towns\n\n## Aln\n\nOn a river.\n\n## Wear\n\nOn a hill.\n", encoding="utf-8")
    return folder


@pytest.fixture
def uri(tmp_path):
    return str(tmp_path / "store")


@pytest.fixture
def clara(capsysbinary):
    """Run the command in this process: exit code, standard output, standard error."""

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            app([str(argument) for argument in arguments])
        shown = capsysbinary.readouterr()
        return left.value.code, shown.out.decode(), shown.err.decode()

    return call


@pytest.fixture
def index(clara, uri, model):
    """Run `clara index --json`, which must succeed."""

    def call(folder, *options):
        code, out, err = clara("index", folder, "--store", uri, "--model", model, "--json", *options)
        assert code == 0, err
        return json.loads(out)

    return call


def held(uri):
    return sorted((record.metadata["file"], record.metadata["start"], record.text) for record in MemoryStore.open(uri))


BRIDGE = ("deep/bridge.txt", 0, "The bridge was opened in 1907.")
ALN = ("towns.md", 0, "# Towns\n\n## Aln\n\nOn a river.")
WEAR = ("towns.md", 30, "## Wear\n\nOn a hill.")


# -- clara index -----------------------------------------------------------------------------------


def counts(facts):
    return tuple(facts[name] for name in ("new", "changed", "unchanged", "removed", "gone"))


def test_index_and_again(index, folder, uri, engine):
    first = index(folder)
    assert counts(first) == (3, 0, 0, 0, 0)
    assert (first["files"], first["passages"], first["left_out"]) == (2, 3, [])
    assert held(uri) == [BRIDGE, ALN, WEAR]
    version = MemoryStore.open(uri).stats().version
    with Counter(engine._worker.model, "encode") as encoded:
        assert counts(index(folder)) == (0, 0, 3, 0, 0)
    assert encoded.calls == 0
    assert MemoryStore.open(uri).stats().version == version


def test_what_changed_is_compressed_and_what_moved_is_not(index, folder, uri, engine):
    index(folder)
    (folder / "towns.md").write_text("# Towns\n\n## Aln\n\nOn a lake.\n\n\n\n## Wear\n\nOn a hill.\n", encoding="utf-8")
    with Counter(engine._worker.model, "encode") as encoded:
        assert counts(index(folder)) == (1, 1, 1, 1, 0)  # Wear is in another file now
    assert encoded.calls == 1
    assert held(uri) == [BRIDGE, ("towns.md", 0, "# Towns\n\n## Aln\n\nOn a lake."), ("towns.md", 31, WEAR[2])]


def test_files_that_are_gone_stay_until_they_are_pruned(index, clara, folder, uri, model):
    index(folder)
    (folder / "towns.md").unlink()
    assert counts(index(folder)) == (0, 0, 1, 0, 2)
    assert len(held(uri)) == 3
    assert "2 of files that no longer exist were kept" in clara("index", folder, "--store", uri, "--model", model)[1]
    assert counts(index(folder, "--prune")) == (0, 0, 1, 2, 0)
    assert held(uri) == [BRIDGE]


def test_an_emptied_file_and_one_that_cannot_be_read(index, folder, uri):
    index(folder)
    (folder / "towns.md").write_text("\n")
    (folder / "deep" / "bridge.txt").write_bytes("Größe".encode("latin-1"))
    facts = index(folder, "--prune")
    assert counts(facts) == (0, 0, 0, 2, 0)  # a file that exists but cannot be read was not removed
    assert "bridge.txt: not UTF-8" in facts["left_out"][0]
    assert facts["left_out"][1] == "towns.md: holds no text"
    assert held(uri) == [BRIDGE]


def test_folders_in_one_store_leave_each_other_alone(index, folder, tmp_path, uri):
    other = tmp_path / "other"
    other.mkdir()
    (other / "towns.md").write_text("Another file of that name.")
    index(folder)
    assert counts(index(other, "--prune")) == (1, 0, 0, 0, 0)
    assert counts(index(folder, "--prune")) == (0, 0, 3, 0, 0)
    assert len(held(uri)) == 4
    folder.rename(tmp_path / "moved")
    assert counts(index(tmp_path / "moved", "--source", folder)) == (0, 0, 3, 0, 0)


def test_one_file_of_a_folder(index, folder, uri):
    assert counts(index(folder / "towns.md")) == (2, 0, 0, 0, 0)
    assert counts(index(folder)) == (1, 0, 2, 0, 0)
    assert counts(index(folder / "towns.md", "--prune")) == (0, 0, 2, 0, 0)
    assert len(held(uri)) == 3


HOSTILE_NAMES = (
    "a[red]b.txt", "'; DROP TABLE memories; --.txt", 'quo"te.md', "new\nline.txt", "\x1b[31mred.txt", "a..%2f..txt",
    "größe 🙂.txt", "#1#.txt", "x" * 200 + ".txt", "{a}.md", "$not.txt",
)  # fmt: skip


def test_hostile_names_and_texts(index, clara, tmp_path, uri, model):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in HOSTILE_NAMES:
        (folder / name).write_text(f"[bold]{name[:9]}[/bold] \x1b[31m <MEM0>\x00 [/nothing]", encoding="utf-8")
    with open(os.fsencode(folder) + b"/bytes \xff.txt", "wb") as file:  # noqa: PTH123 - a file name that is not text
        file.write(b"Bytes.")
    assert counts(index(folder)) == (len(HOSTILE_NAMES) + 1, 0, 0, 0, 0)
    assert counts(index(folder)) == (0, 0, len(HOSTILE_NAMES) + 1, 0, 0)
    assert {file for file, _, _ in held(uri)} == {*HOSTILE_NAMES, "bytes \udcff.txt"}
    code, out, _ = clara("search", "[/nothing] \x1b[31m'; --", "--store", uri, "--model", model, "-k", 20)
    assert code == 0
    assert "\x1b" not in out
    assert "a[red]b.txt" in out
    condition = json.dumps({"file": HOSTILE_NAMES[1]})
    _, out, _ = clara("search", "x", "--store", uri, "--model", model, "--filter", condition, "--json")
    assert [hit["metadata"]["file"] for hit in json.loads(out)["hits"]] == [HOSTILE_NAMES[1]]
    for path in folder.iterdir():
        path.unlink()
    (folder / "new.txt").write_text("New.")
    assert counts(index(folder, "--prune")) == (1, 0, 0, len(HOSTILE_NAMES) + 1, 0)


def test_killed_in_the_middle_and_run_again(index, tmp_path, uri, model):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(20):
        sections = (f"## Part {part}\n\nFile {number} speaks of {part * number}.\n\n" for part in range(40))
        (folder / f"{number}.md").write_text("".join(sections))
    command = [sys.executable, "-c", "from clara_core.cli.main import app; app()", "index", folder, "--store", uri]
    process = subprocess.Popen([*map(str, command), "--model", model], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        if Path(uri).exists() and MemoryStore.open(uri).count():
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(held(uri))
    assert before > 0
    facts = index(folder)
    assert counts(facts) == (800 - before, 0, before, 0, 0)
    texts = {file: (folder / file).read_text() for file, _, _ in held(uri)}
    assert len(texts) == 20
    assert len(held(uri)) == 800
    for file, start, text in held(uri):
        assert texts[file][start:].startswith(text)


def test_a_store_of_another_model_is_refused_and_left_as_it_is(index, clara, folder, uri, other_model):
    index(folder)
    (folder / "towns.md").write_text("New text.")
    code, _, err = clara("index", folder, "--store", uri, "--model", other_model, "--prune")
    assert (code, err.count("\n")) == (2, 1)
    assert "another" in err
    assert held(uri) == [BRIDGE, ALN, WEAR]


@pytest.mark.parametrize("where", ["nowhere", "empty"])
def test_a_folder_without_texts(clara, tmp_path, uri, model, where):
    (tmp_path / "empty").mkdir()
    code, _, err = clara("index", tmp_path / where, "--store", uri, "--model", model, "--prune")
    assert (code, err.count("\n")) == (2, 1)
    assert not Path(uri).exists()


# -- clara search ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--mode", "memory"), ("--mode", "text"), ("--mode", "memory", "--exact")])
def test_search_is_that_of_the_store(index, clara, folder, uri, model, engine, options):
    index(folder)
    store = MemoryStore.open(uri, engine)
    condition = {"file": {"$ne": "nothing"}}
    code, out, err = clara(
        "search",
        QUESTION,
        "--store",
        uri,
        "--model",
        model,
        "-k",
        2,
        "--filter",
        json.dumps(condition),
        "--json",
        *options,
    )
    facts = json.loads(out)
    mode = options[1] if options else "hybrid"
    hits = store.search(QUESTION, 2, filter=condition, mode=mode, exact="--exact" in options)
    assert (code, err, facts["mode"]) == (0, "", mode)
    assert facts["hits"] == [
        {"id": hit.id, "score": pytest.approx(hit.score, abs=1e-5), "relevance": pytest.approx(hit.relevance, abs=1e-5),
         "window": hit.window, "text": hit.text, "metadata": hit.metadata}
        for hit in hits
    ]  # fmt: skip
    assert hits
    shown = clara("search", QUESTION, "--store", uri, "--model", model, "-k", 2, *options)[1]
    assert all(hit.metadata["file"] in shown for hit in hits)
    assert "of 3 documents" in shown


def test_words_need_no_model(index, clara, folder, uri):
    index(folder)
    code, out, _ = clara("search", "river", "--store", uri, "--model", "/nowhere", "--mode", "text", "--json")
    assert code == 0
    assert [hit["metadata"]["file"] for hit in json.loads(out)["hits"]] == ["towns.md"]


def test_documents_that_somebody_else_wrote(clara, uri, model, engine):
    MemoryStore.open(uri, engine).add(["A plant."], [{"file": 5}], ["plant-1"])
    assert "plant-1" in clara("search", "plant", "--store", uri, "--model", model)[1]


@pytest.mark.parametrize("command", ["search", "ask"])
def test_a_missing_store(clara, uri, model, command):
    code, _, err = clara(command, QUESTION, "--store", uri, "--model", model)
    assert (code, err.count("\n")) == (2, 1)
    assert "clara index" in err
    assert not Path(uri).exists()


@pytest.mark.parametrize(
    "condition, says", [("{", "is not JSON"), ("[1]", "must be a dict"), ('{"a": {"$gtt": 1}}', "did you mean '$gt'")]
)
def test_a_filter_that_is_none(index, clara, folder, uri, model, condition, says):
    index(folder)
    code, _, err = clara("search", QUESTION, "--store", uri, "--model", model, "--filter", condition)
    assert (code, err.count("\n")) == (2, 1)
    assert says in err


# -- clara ask --store -----------------------------------------------------------------------------


def test_ask_reads_what_the_store_finds(index, clara, folder, uri, model, engine):
    index(folder)
    options = ("--store", uri, "--model", model, "--top-k", 2, "--max-tokens", 8)
    code, out, err = clara("ask", QUESTION, *options, "--json")
    facts = json.loads(out)
    store = MemoryStore.open(uri, engine)
    hits = store.search(QUESTION, 2)
    answer = engine.answer(QUESTION, store.memories([hit.id for hit in hits]), max_tokens=8)
    assert (code, err) == (0, "")
    assert facts["answer"] == answer.text
    assert (facts["passages"], facts["store"]) == (3, uri)
    assert facts["memory_tokens"] == answer.memory_tokens
    assert facts["seconds"].keys() == {"search", "answer"}
    assert [(source["file"], source["text"]) for source in facts["sources"]] == [
        (hit.metadata["file"], hit.text) for hit in hits
    ]
    shown = clara("ask", QUESTION, *options)[1]
    assert shown.startswith(answer.text.strip())
    assert "searched 3 passages" in shown


@pytest.mark.parametrize("words", [("folder", "question", "--store", "uri"), ("question",), ("a", "b", "c")])
def test_a_folder_or_a_store(clara, words):
    code, _, err = clara("ask", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "give a" in err


def test_check_and_salvage_name_broken_files(clara, model, folder, uri):
    assert clara("index", folder, "--store", uri, "--model", model)[0] == 0
    assert clara("store", "check", "--store", uri)[:2] == (0, "all files can be read\n")
    [file] = Path(uri, "memories.lance", "data").iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    code, out, _ = clara("store", "check", "--store", uri, "--json")
    assert (code, [Path(each["path"]).name for each in json.loads(out)["broken"]]) == (1, [file.name])
    code, out, _ = clara("store", "salvage", "--store", uri)
    assert code == 0
    assert f"{file.name}: 3 documents removed" in out
    assert clara("store", "check", "--store", uri)[0] == 0
